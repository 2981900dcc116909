import numpy as np
from geobind_thermal import Thermal

from geobind.testing import ModalityContract


class TestThermal(ModalityContract):
    modality = Thermal()
    raws = [np.full((40, 60), 280.0), np.linspace(270, 330, 2400).reshape(60, 40)]
    bad_raws = ["no_such_file.npy", np.zeros((3, 3)), np.full((3, 3, 3), 290.0)]
