"""The contract of engines, held by the fake that other tests use."""

from contextlib import AbstractContextManager

import pytest
from engine_contract import EngineContract, Subject
from fake_engine import FakeEngine


class _Fake(Subject):
    image = "image"

    def __init__(self) -> None:
        self.fake = FakeEngine()
        self.engine = self.fake

    def set_words(self, name: str, *, memory: str, state: str) -> None:
        words = self.fake.words(name)
        words.memory, words.state = memory, state

    def words(self, name: str) -> tuple[str, str]:
        words = self.fake.words(name)
        assert words.memory is not None
        return words.memory, words.state

    def spoil(self, name: str, snapshot: str) -> None:
        self.fake.damage(name, snapshot)

    def busy(self, name: str) -> AbstractContextManager[object]:
        return self.fake.owned(name)


class TestFake(EngineContract):
    """Without machines."""

    @pytest.fixture
    def subject(self) -> Subject:
        return _Fake()
