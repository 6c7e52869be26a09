"""Registry of the size-search methods, by their name in `search.method`."""

from typing import TypeVar

from ham_dist.config import schema
from ham_dist.methods.autodim import AutoDim
from ham_dist.methods.ham import HardAuxiliaryMask
from ham_dist.methods.ham_p import BernoulliMask
from ham_dist.methods.irazor import IRazor
from ham_dist.methods.loo import LeaveOneOut
from ham_dist.methods.magnitude import Magnitude
from ham_dist.methods.mde import MDE
from ham_dist.methods.method import Method
from ham_dist.methods.pca import PCA
from ham_dist.methods.pep import Pep
from ham_dist.methods.random import Random
from ham_dist.methods.sam import SoftAuxiliaryMask
from ham_dist.methods.sam_gs import GumbelSigmoidMask
from ham_dist.methods.sseds import SSEDS
from ham_dist.methods.uniform import Uniform

METHODS: dict[str, type[Method]] = {}
"""All methods by name, built-in ones and those of plug-ins."""

MethodClass = TypeVar("MethodClass", bound=type[Method])


def register_method(method: MethodClass) -> MethodClass:
    """Makes a method available in `search.method`, by the name in its settings class; usable as a decorator.

    Raises:
        ConfigError: Its settings have no name, or the name of another method.
    """
    METHODS[schema.METHODS.register(method.Settings)] = method
    return method


_BUILT_IN = (
    HardAuxiliaryMask,
    Uniform,
    Random,
    Magnitude,
    AutoDim,
    SSEDS,
    LeaveOneOut,
    MDE,
    PCA,
    Pep,
    SoftAuxiliaryMask,
    GumbelSigmoidMask,
    BernoulliMask,
    IRazor,
)
for _built_in in _BUILT_IN:
    register_method(_built_in)
