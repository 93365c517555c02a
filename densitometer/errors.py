"""Every exception that densitometer raises on purpose.

    DensitometerError
    +-- InputError (ValueError)          a text, token id, position, size or name is not valid
    +-- ArgumentTypeError (TypeError)    an argument has the wrong type
    +-- ModelError                       a model cannot be loaded or measured
    |   +-- UnknownLayoutError           no declared layout describes how its blocks add up
    |   +-- NonFiniteError               it returns NaN or infinities
    |   +-- IdentityError                an identity that every measurement relies on fails
    +-- OutOfMemoryError (MemoryError)   memory is too small for the text or the model
    +-- PluginError                      a registered function returned something unusable
    +-- StorageError                     a result cannot be written or read
    +-- EngineError                      workers of a study cannot be started, or keep dying

    DensitometerWarning (UserWarning)    a result is valid, but perhaps not what the user meant

Each message gives the value, what was expected, and what to do. The name of the class is the id of
an error: the command line adds it to the end of the message, and `docs/errors/NAME.md` has causes
and remedies.
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
    """Warning that a result is valid, but perhaps not what the user meant.

    The command line prints it as one line on stderr.

    Examples:
        >>> import warnings
        >>> with warnings.catch_warnings():
        ...     warnings.simplefilter("error", dm.DensitometerWarning)  # to have it raised
        ...     dm.measure(model, "The captain", sizes=[1.0]).graph.n_edges
        169
    """


class InputError(DensitometerError, ValueError):
    """A text, token id, position, size, budget or name is not valid."""


class ArgumentTypeError(DensitometerError, TypeError):
    """An argument has the wrong type."""


class ModelError(DensitometerError):
    """A model cannot be loaded or cannot be measured."""


class UnknownLayoutError(ModelError):
    """No declared layout describes how the decoder layers add up to the residual stream."""


class NonFiniteError(ModelError):
    """The model returns NaN or infinities. The message names the first layer where they appear."""


class IdentityError(ModelError):
    """An identity that every measurement relies on does not hold for the model."""


class OutOfMemoryError(DensitometerError, MemoryError):
    """Memory ran out, on the CPU or a device. The model is unchanged."""


class PluginError(DensitometerError):
    """An importance or metric function returned something that cannot be used."""


class StorageError(DensitometerError):
    """A result cannot be written or read."""


class EngineError(DensitometerError):
    """The workers of a study cannot be started, or keep dying."""
