"""The methods by the name that `search.method` gives them."""

from ham_dist.methods.ham import HardAuxiliaryMask
from ham_dist.methods.magnitude import Magnitude
from ham_dist.methods.method import Method
from ham_dist.methods.random import Random
from ham_dist.methods.uniform import Uniform

METHODS: dict[str, type[Method]] = {
    "ham": HardAuxiliaryMask,
    "uniform": Uniform,
    "random": Random,
    "magnitude": Magnitude,
}
"""To add a method: a class in a file of its own, a line here, and its name in `SearchSettings.method`."""
