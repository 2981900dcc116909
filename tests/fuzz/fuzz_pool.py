"""Run calls in processes that may crash, hang or swallow memory, and tell which did."""

import multiprocessing
import os
import resource
import tempfile
import time
import traceback
from multiprocessing.connection import wait
from typing import NamedTuple

SPARE = 6 * 1024**3  # bytes of address space beyond what an idle process has


class Result(NamedTuple):
    task: tuple
    outcome: str  # what the call returned; of a fault, what happened
    fault: bool
    seconds: float  # of the processor; of the clock if the process was ended
    grown: int  # bytes by which the process's peak of memory went up


class Worker:
    """A process with a limit of memory, and the task it is at."""

    def __init__(self, make):
        context = multiprocessing.get_context("spawn")
        self.pipe, there = context.Pipe()
        self.process = context.Process(target=_serve, args=(there, make), daemon=True)
        self.process.start()
        there.close()
        self.task, self.since = None, 0.0

    def send(self, task):
        self.task, self.since = task, time.monotonic()
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
    pool = [Worker(make) for _ in range(workers)]
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
                    worker = Worker(make)
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
    seconds = time.monotonic() - worker.since
    return (
        Result(worker.task, f"the process hung for {seconds:.0f} s", True, seconds, 0)
        if seconds > limit_s
        else None
    )


def _serve(pipe, make):
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # decoders complain there
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
        before, begun = _peak(), time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            try:
                outcome, fault = call(*task, folder), False
            except BaseException:
                outcome, fault = traceback.format_exc(limit=-6), True
        pipe.send((outcome, fault, time.process_time() - begun, _peak() - before))


def _peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
