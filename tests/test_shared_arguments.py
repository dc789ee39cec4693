"""Arguments of several classes have one description, one default and one type."""

import inspect
import re
import sys

import pytest

from avalanche_supermask import CLNP, ExSSNeTPlugin, methods
from avalanche_supermask.shared_arguments import complete_arguments, taken_by
from avalanche_supermask.strategies.clnp import CLNPPlugin

METHODS = methods()


class Source:
    """A source.

    Args:
        density: fraction of weights that are kept, on
            two lines.
        rate: of learning.
    """

    def __init__(self, *, density=0.1, rate=1.0): ...


def made(default=0.1):
    class Taker:
        """Takes more.

        Args:
            model: a module.
            rate: of its own.
            arguments: of others.

        Raises:
            ValueError: never.
        """

        def __init__(self, model, *, density=default, rate=None, **arguments): ...

    # Docstrings of classes at the top of a module are indented by four spaces.
    Taker.__doc__ = inspect.cleandoc(Taker.__doc__).replace("\n", "\n    ").replace("    \n", "\n") + "\n    "
    return Taker


@pytest.mark.parametrize("dedented", [False, True], ids=["as written", "as of Python 3.13"])
def test_a_missing_description_is_the_source_s_in_the_order_of_the_signature(dedented):
    cls = made()
    if dedented:
        cls.__doc__ = inspect.cleandoc(cls.__doc__)
    complete_arguments(cls, [Source])
    assert inspect.cleandoc(cls.__doc__) == inspect.cleandoc(
        """Takes more.

        Args:
            model: a module.
            density: fraction of weights that are kept, on
                two lines.
            rate: of its own.
            arguments: of others.

        Raises:
            ValueError: never.
        """
    )
    before = cls.__doc__
    complete_arguments(cls, [Source])
    assert cls.__doc__ == before


@pytest.mark.parametrize("strategy", [cls for cls in METHODS.values() if "method" in inspect.get_annotations(cls)])
def test_a_strategy_and_its_plugin_have_the_same_defaults(strategy):
    plugin = vars(sys.modules[strategy.__module__])[inspect.get_annotations(strategy)["method"]]
    taken, given = (inspect.signature(cls.__init__).parameters for cls in (strategy, plugin))
    shared = [name for name in given if name not in ("self", "exclusive")]  # ExSSNeT and SSNeT fix this argument.
    assert set(shared) <= set(taken), "the strategy takes all that the plugin takes"
    for name in shared:
        if name != "schedule":  # The strategy's default depends on whether an optimizer is passed.
            assert taken[name].default == given[name].default, name
            assert taken[name].annotation == given[name].annotation, name


def test_of_the_values_only_arguments_are_taken():
    assert taken_by(Source, {"self": 0, "density": 0.3, "other": 1}) == {"density": 0.3}


@pytest.mark.parametrize("cls", [*METHODS.values(), CLNPPlugin, ExSSNeTPlugin])
def test_every_argument_is_described_and_none_by_the_name_of_another_class(cls):
    if "__init__" not in vars(cls):
        pytest.skip("it takes what its base takes")
    parameters = inspect.signature(cls.__init__).parameters
    section = cls.__doc__.split("Args:\n")[1].split("\n\n")[0]
    for name, parameter in parameters.items():
        if name != "self" and parameter.kind is not parameter.VAR_KEYWORD:
            assert f" {name}: " in section, name
    assert not re.search(r"see `\w+(Plugin|Strategy)`", section)


def test_help_shows_names_and_defaults():
    shown = str(inspect.signature(CLNP))
    assert "margin: 'Fraction' = 0.005" in shown
    assert "model: 'nn.Module'" in shown
