"""Run calls in processes that may crash, hang or swallow memory, and tell which did.

A hang is judged by the seconds for which a process ran or slept, not by the clock: on a busy machine it
waits for its turn many times as long.
"""

import multiprocessing
import os
import resource
import tempfile
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import wait
from pathlib import Path
from typing import NamedTuple

SPARE = 6 * 1024**3  # bytes of address space beyond what an idle process has
MEMORY = Path("/dev/shm")  # files that live as long as an item need no disk


class Result(NamedTuple):
    task: tuple
    outcome: str  # what the call returned; of a fault, what happened
    fault: bool
    seconds: float  # of the processor; of the clock if the process was ended
    grown: int  # bytes by which the process's memory went up at most


class Worker:
    """A process with a limit of memory, and the task it is at."""

    def __init__(self, make, folder):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, make, folder), daemon=True)
        self.process.start()
        there.close()
        self.task, self.since, self.clocks = None, 0.0, None

    def send(self, task):
        self.task, self.since, self.clocks = task, time.monotonic(), None
        self.pipe.send(task)

    def end(self):
        self.process.kill()
        self.process.join()
        self.pipe.close()


def run(tasks, make, workers, limit_s):
    """Yield a result for each task, in the order of their ends.

    Args:
        tasks: What to call with, tuples that pickle.
        make: Returns, in a worker, the function to call; it is at the top of a module.
        workers: Processes.
        limit_s: Seconds after which a call hangs, and its process is ended.
    """
    tasks = iter(tasks)
    with tempfile.TemporaryDirectory(dir=MEMORY if os.access(MEMORY, os.W_OK) else None) as folder:
        pool = [Worker(make, folder) for _ in range(workers)]
        try:
            for worker in pool:
                worker.pipe.recv()  # it has imported everything
            for worker in list(pool):
                _next(worker, tasks, pool)
            while pool:
                ready = wait([worker.pipe for worker in pool], timeout=0.5)
                for worker in list(pool):
                    result = _result(worker, worker.pipe in ready, limit_s)
                    if result is None:
                        continue
                    yield result
                    if result.fault and result.outcome.startswith("the process"):
                        pool.remove(worker)
                        worker.end()
                        worker = Worker(make, folder)
                        worker.pipe.recv()
                        pool.append(worker)
                    _next(worker, tasks, pool)
        finally:
            for worker in pool:
                worker.end()


def _next(worker, tasks, pool):
    task = next(tasks, None)
    if task is None:
        worker.end()
        pool.remove(worker)
    else:
        worker.send(task)


def _result(worker, ready, limit_s):
    if ready:
        try:
            return Result(worker.task, *worker.pipe.recv())
        except EOFError:
            worker.process.join()
            code = worker.process.exitcode
            return Result(
                worker.task, f"the process died with {code}", True, time.monotonic() - worker.since, 0
            )
    clock, clocks = time.monotonic() - worker.since, read_clocks(worker.process.pid)
    worker.clocks = worker.clocks or clocks  # what ends between two looks needs none
    ran, queued = (now - then for now, then in zip(clocks, worker.clocks, strict=True))
    why = hang(clock, ran, queued, limit_s)
    return Result(worker.task, f"the process hung: it {why}", True, clock, 0) if why else None


def hang(clock, ran, queued, limit_s):
    """Return what a call did for too long, "" where it only waited for its turn.

    Args:
        clock: Seconds since it began.
        ran: Seconds for which it had a processor.
        queued: Seconds for which it wanted one.
        limit_s: Seconds that are too long.
    """
    if ran > limit_s:
        return f"ran for {ran:.0f} s"
    slept = clock - ran - queued
    return f"slept for {slept:.0f} s" if slept > limit_s else ""


def read_clocks(pid):
    """Return the seconds for which the threads of a process had a processor, and wanted one in vain."""
    ran = queued = 0
    for thread in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError):  # it has ended
            on_processor, in_queue, _ = thread.read_text().split()
            ran, queued = ran + int(on_processor), queued + int(in_queue)
    return ran / 1e9, queued / 1e9


def _serve(pipe, make, folder):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain there
    tempfile.tempdir = folder
    call = make()
    with open("/proc/self/statm") as file:
        now = int(file.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + SPARE, now + SPARE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send("ready")
    while True:
        try:
            task = pipe.recv()
        except EOFError:
            return
        _forget_peak()
        before, begun = _peak(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome, fault = call(*task, folder), False
            except BaseException:
                outcome, fault = traceback.format_exc(limit=-6), True
        pipe.send((outcome, fault, time.process_time() - begun, _peak() - before))


def _forget_peak():
    """Make the peak of memory what is in use now: else an item hides below a greater one before it."""
    with suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
