import io

import numpy as np
from geobind_thermal import Thermal

from geobind.testing import ModalityContract


def npy_bytes(array):
    np.save(file := io.BytesIO(), array)
    return file.getvalue()


class TestThermal(ModalityContract):
    modality = Thermal()
    raws = [np.full((40, 60), 280.0), np.linspace(270, 330, 2400).reshape(60, 40)]
    files = [npy_bytes(raws[1])]
    bad_raws = ["no_such_file.npy", b"no array", np.zeros((3, 3)), np.full((3, 3, 3), 290.0)]
