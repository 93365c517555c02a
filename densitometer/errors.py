"""Every exception that densitometer raises on purpose.

    DensitometerError
    +-- InputError (ValueError)          a text, token id, position, size or name that cannot be used
    +-- ArgumentTypeError (TypeError)    an argument of the wrong type
    +-- ModelError                       a model that cannot be loaded or measured
    |   +-- UnknownLayoutError           its blocks add up in a way that no declared layout describes
    |   +-- NonFiniteError               it yields NaN or infinities; names the first layer
    |   +-- IdentityError                it does not hold an identity that every measurement relies on
    +-- OutOfMemoryError (MemoryError)   a text too long, or a model too large, for the memory at hand
    +-- PluginError                      a registered importance or metric that returned something unusable
    +-- StorageError                     a result that cannot be written or read
    +-- EngineError                      workers of a study that cannot be started, or keep dying

    DensitometerWarning (UserWarning)    a result that holds, of something else than one may think

Each message says what came, what was expected and what to do. The name of the class is its id: a traceback begins with it,
the command line ends its line with it, and `docs/errors/NAME.md` has causes and cures.
"""

from __future__ import annotations


class DensitometerError(Exception):
    """Base of every error that densitometer raises on purpose.

    Examples:
        >>> try:
        ...     dm.measure(model, "")
        ... except dm.DensitometerError as error:
        ...     print(type(error).__name__)
        InputError
    """


class DensitometerWarning(UserWarning):
    """Warning that results hold, but may not be what was meant.

    The command line prints it as one line on stderr.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", dm.DensitometerWarning)  # to have it raised
        ...     dm.measure(model, "The captain", sizes=[1.0]).graph.n_edges
        169
    """


class InputError(DensitometerError, ValueError):
    """A text, token id, position, size, budget or name that cannot be used."""


class ArgumentTypeError(DensitometerError, TypeError):
    """An argument of the wrong type."""


class ModelError(DensitometerError):
    """A model that cannot be loaded or cannot be measured."""


class UnknownLayoutError(ModelError):
    """The decoder layers add up in a way that no declared layout describes."""


class NonFiniteError(ModelError):
    """The model yields NaN or infinities. The message names the first layer where they appear."""


class IdentityError(ModelError):
    """The model does not hold an identity that every measurement relies on."""


class OutOfMemoryError(DensitometerError, MemoryError):
    """Memory ran out, on the CPU or a device. The model is left as it was."""


class PluginError(DensitometerError):
    """An importance or metric function returned something that cannot be used."""


class StorageError(DensitometerError):
    """A result cannot be written or read."""


class EngineError(DensitometerError):
    """The workers of a study cannot be started, or keep dying."""
