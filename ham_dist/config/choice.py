"""Sections of the settings whose keys depend on their `name`, as each method and model has its own class."""

import importlib
import json
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, BeforeValidator, ValidationError, ValidationInfo
from pydantic_core import InitErrorDetails

from ham_dist.errors import ConfigError

Chosen = TypeVar("Chosen", bound=BaseModel)


class Choice(Generic[Chosen]):
    """The settings classes of one section, by `name`.

    Args:
        section: Key of the name in run.toml, for messages.
        default: Name to use if none is given.
        home: Module that registers the built-in classes. It is in a package above config/ and loads torch, so
            it is imported at first use.
    """

    def __init__(self, section: str, default: str, home: str) -> None:
        self.section = section
        self.default = default
        self._home = home
        self._classes: dict[str, type[Chosen]] = {}

    def register(self, settings: type[Chosen]) -> str:
        """Adds a settings class and returns its name, the default of its key `name`.

        Raises:
            ConfigError: The class has no name, or another class has the same name.
        """
        field = settings.model_fields.get("name")
        name = field.default if field else None
        if not isinstance(name, str):
            raise ConfigError(
                f"{settings.__name__}: has no name for {self.section} to choose it by. "
                'Add an attribute `name: Literal["mine"] = "mine"`.'
            )
        if self._classes.setdefault(name, settings) is not settings:
            raise ConfigError(
                f"{settings.__name__}: {self.section} = {name!r} is already used by "
                f"{self._classes[name].__qualname__}. Give it another name."
            )
        return name

    def names(self) -> list[str]:
        """All names, built-in ones first."""
        importlib.import_module(self._home)
        return list(self._classes)

    def class_of(self, value: Any) -> type[Chosen] | None:
        """The class chosen by a section's value (its table, or only its name); None for an unknown name."""
        name = value.get("name", self.default) if isinstance(value, dict) else value
        return self._classes.get(name) if isinstance(name, str) and name in self.names() else None

    def start(self) -> Chosen:
        """The section with every default."""
        chosen = self.class_of(self.default)
        assert chosen is not None
        return chosen()

    def validator(self) -> BeforeValidator:
        """Converts the user's value (a table, or only a name) to an instance of the chosen class."""
        return BeforeValidator(self._choose)

    def _choose(self, value: Any, info: ValidationInfo) -> Any:
        if not isinstance(value, dict | str):
            return value  # an instance already, or a value that pydantic rejects
        chosen = self.class_of(value)
        if chosen is None:
            raise ValidationError.from_exception_data(self.section, self._unknown_name(value))
        table = value if isinstance(value, dict) else {"name": value}
        validate: Callable[..., Any] = chosen.model_validate
        if info.mode == "json":  # in JSON mode, strict validation accepts a list for a tuple
            return chosen.model_validate_json(json.dumps(table), strict=True)
        return validate(table)

    def _unknown_name(self, value: dict[str, Any] | str) -> list[InitErrorDetails]:
        """Errors for the unknown name, and for keys that no class has."""
        table = value if isinstance(value, dict) else {}
        known = {key for kind in self._classes.values() for key in kind.model_fields}
        wrong_name = InitErrorDetails(
            type="literal_error",
            loc=("name",) if table else (),
            input=table["name"] if table else value,
            ctx={"expected": either(self.names())},
        )
        return [wrong_name] + [
            InitErrorDetails(type="extra_forbidden", loc=(key,), input=table[key])
            for key in table
            if key not in known
        ]


def either(names: list[str]) -> str:
    """'a', 'b' or 'c', as pydantic lists the values of a Literal."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last
