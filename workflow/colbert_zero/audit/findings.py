"""What an audit finds: a fault, the artifact that has it, and what shows it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Check(StrEnum):
    """What shows a fault."""

    ARTIFACT = "the artifact alone"
    CONSUMERS = "its consumers"
    STUDY = "the study's config"
    NUMBERS = "recomputation"
    CHAIN = "the chain"
    SIGNATURE = "the signature"


@dataclass(frozen=True)
class Finding:
    """A fault.

    Attributes:
        artifact: The name of the artifact that has it, `KIND/LABEL-KEY`; or the path of what belongs to none.
        check: What shows it.
        problem: What is wrong, where, and what to do; the message for people.
    """

    artifact: str
    check: Check
    problem: str


@dataclass(frozen=True)
class Note:
    """What an audit says that is no fault.

    Attributes:
        text: The message for people.
        unsure: Whether it says why the audit cannot tell that all is well.
    """

    text: str
    unsure: bool = False
