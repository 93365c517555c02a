"""Six small tasks, each a list of prompts made from a template of our own.

    induction           a word is repeated; the word that followed it the first time is next
    indirect-object     of two people, the one who receives something     (after arXiv 2211.00593)
    greater-than        the decade in which a war ends, after it began    (after arXiv 2305.00586)
    subject-verb        "is" or "are", with another noun between          (after arXiv 1611.01368)
    capitals            the capital of a country
    docstring           the next argument to describe of a Python function

The papers introduced the tasks. The templates and words here are our own, so results differ from
those of the papers. Every prompt has a target, a wrong answer to compare it with, and a
counterfactual: the same prompt with one word changed, so that this wrong answer is the right one.

What this file does not do: it measures nothing (`tasks.py`). Words are single tokens in most
tokenizers; `tasks.py` leaves out prompts for which they are not.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

from .._util.arguments import checked_count, checked_seed
from ..errors import InputError
from .prompts import Prompt

_NOUNS = (
    "apple", "river", "stone", "cloud", "horse", "table", "garden", "window", "mountain", "paper",
    "bridge", "winter", "silver", "letter", "forest", "castle", "engine", "kitchen", "market", "island",
)  # fmt: skip
_PEOPLE = (
    "Mary", "John", "Tom", "James", "Paul", "Anna", "Peter", "Sarah", "David", "Emma",
    "Michael", "Laura", "Robert", "Kate", "Mark", "Alice",
)  # fmt: skip
_PLACES = (
    ("store", "drink"),
    ("park", "ball"),
    ("school", "book"),
    ("office", "letter"),
    ("station", "ticket"),
)
_EVENTS = ("war", "project", "dispute", "voyage", "reign")
# singular, plural
_SUBJECTS = (
    ("key", "keys"), ("picture", "pictures"), ("book", "books"), ("door", "doors"), ("letter", "letters"),
    ("road", "roads"), ("song", "songs"), ("name", "names"),
)  # fmt: skip
_BETWEEN = (
    "to the cabinet", "in the old house", "of the teacher", "near the river", "behind the tall trees",
    "from the students",
)  # fmt: skip
_CAPITALS = (
    ("France", "Paris"), ("Spain", "Madrid"), ("Germany", "Berlin"), ("Italy", "Rome"), ("England", "London"),
    ("Japan", "Tokyo"), ("Russia", "Moscow"), ("China", "Beijing"), ("Egypt", "Cairo"), ("Greece", "Athens"),
    ("Ireland", "Dublin"), ("Austria", "Vienna"), ("Portugal", "Lisbon"), ("Cuba", "Havana"),
    ("Iran", "Tehran"), ("Poland", "Warsaw"), ("Iraq", "Baghdad"),
)  # fmt: skip
_ASKED = (
    "The capital of {} is the city of",
    "The government of {} meets in the capital city,",
    "A map of {} shows the capital,",
)
_ARGUMENTS = (
    "name", "path", "size", "value", "text", "data", "mode", "count", "start", "color", "width", "index",
    "image", "state",
)  # fmt: skip
_FUNCTIONS = ("load", "send", "update", "convert", "check")


def _induction(draw: random.Random) -> Iterator[Prompt]:
    while True:
        words = draw.sample(_NOUNS, 6)
        asked, other = draw.sample(range(1, 5), 2)
        # neither word may be the other's answer
        if abs(asked - other) > 1:
            twice = " ".join(words * 2)
            yield Prompt(
                f"{twice} {words[asked]}",
                f" {words[asked + 1]}",
                f" {words[other + 1]}",
                f"{twice} {words[other]}",
            )


def _indirect_object(draw: random.Random) -> Iterator[Prompt]:
    while True:
        first, second = draw.sample(_PEOPLE, 2)
        place, thing = draw.choice(_PLACES)
        giver, receiver = draw.choice([(first, second), (second, first)])
        start = f"When {first} and {second} went to the {place},"
        yield Prompt(
            f"{start} {giver} gave a {thing} to",
            f" {receiver}",
            f" {giver}",
            f"{start} {receiver} gave a {thing} to",
        )


def _greater_than(draw: random.Random) -> Iterator[Prompt]:
    while True:
        event, century = draw.choice(_EVENTS), draw.randint(11, 19)
        decade, year = draw.randint(2, 7), draw.randint(0, 9)
        yield Prompt(
            f"The {event} lasted from the year {century}{decade}{year} to the year {century}",
            tuple(str(digit) for digit in range(decade + 1, 10)),
            tuple(str(digit) for digit in range(decade)),
            f"The {event} lasted from the year {century}0{year} to the year {century}",
        )


def _subject_verb(draw: random.Random) -> Iterator[Prompt]:
    while True:
        one, many = draw.choice(_SUBJECTS)
        between = draw.choice(_BETWEEN)
        singular, plural = f"The {one} {between}", f"The {many} {between}"
        if draw.random() < 0.5:
            yield Prompt(singular, " is", " are", plural)
        else:
            yield Prompt(plural, " are", " is", singular)


def _capitals(draw: random.Random) -> Iterator[Prompt]:
    while True:
        (country, capital), (other, its_capital) = draw.sample(_CAPITALS, 2)
        asked = draw.choice(_ASKED)
        yield Prompt(asked.format(country), f" {capital}", f" {its_capital}", asked.format(other))


def _docstring(draw: random.Random) -> Iterator[Prompt]:
    while True:
        function = draw.choice(_FUNCTIONS)
        first, second, third, fourth, other = draw.sample(_ARGUMENTS, 5)

        def code(last: str, function: str = function, names: Sequence[str] = (first, second, third)) -> str:
            a, b, c = names
            return (
                f"def {function}(self, {a}, {b}, {c}, {last}):\n"
                f'    """{function.capitalize()} it.\n\n'
                f"    :param {a}: the first\n    :param {b}: the second\n    :param {c}: the third\n    :param"
            )

        yield Prompt(code(fourth), f" {fourth}", f" {other}", code(other))


_TASKS: dict[str, Callable[[random.Random], Iterator[Prompt]]] = {
    "induction": _induction,
    "indirect-object": _indirect_object,
    "greater-than": _greater_than,
    "subject-verb": _subject_verb,
    "capitals": _capitals,
    "docstring": _docstring,
}


def list_tasks() -> list[str]:
    """Names of the bundled tasks.

    Examples:
        >>> dm.list_tasks()
        ['induction', 'indirect-object', 'greater-than', 'subject-verb', 'capitals', 'docstring']
    """
    return list(_TASKS)


def load_task(name: str, n_prompts: int = 48, *, seed: int = 0) -> list[Prompt]:
    """Make prompts of a bundled task.

    Args:
        name: one of `list_tasks()`.
        n_prompts: number of prompts, at least 2. No two are the same.
        seed: random seed by which words are drawn.

    Raises:
        InputError: the name is unknown, or the templates give fewer prompts.

    Examples:
        >>> len(dm.load_task("induction", 10)), dm.load_task("subject-verb", 2)[0].target
        (10, ' is')
    """
    if name not in _TASKS:
        raise InputError(f"unknown task {name!r}; expected one of {', '.join(_TASKS)}")
    wanted = checked_count(n_prompts, 10_000)
    prompts: dict[str, Prompt] = {}
    for prompt in islice(_TASKS[name](random.Random(checked_seed(seed))), 20 * wanted + 1000):
        prompts.setdefault(prompt.text, prompt)
        if len(prompts) >= wanted:
            return list(prompts.values())[:wanted]
    raise InputError(
        f"the task {name!r} has about {len(prompts)} different prompts; got n_prompts={n_prompts}"
    )
