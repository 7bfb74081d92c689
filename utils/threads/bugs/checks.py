"""Check, then act: what was looked up is no longer true when it is used.

Also its mirror image, the writer who lets others look at what is not finished yet.
"""

from __future__ import annotations

import threading

from utils.threads.bugs.pair import Pair, together


def withdraw_wrong() -> None:
    balance = 100
    lock = threading.Lock()  # held whenever balance is read or written

    def withdraw() -> None:
        nonlocal balance
        with lock:
            enough = balance >= 60
        if enough:  # was, when we looked
            with lock:
                balance -= 60

    together(withdraw, withdraw)
    assert balance >= 0


def withdraw_right() -> None:
    balance = 100
    lock = threading.Lock()  # held from reading balance to writing it

    def withdraw() -> None:
        nonlocal balance
        with lock:
            if balance >= 60:
                balance -= 60

    together(withdraw, withdraw)
    assert balance >= 0


def lazy_wrong() -> None:
    loaded: list[object] = []

    def model() -> object:
        if not loaded:
            loaded.append(object())
        return loaded[-1]

    together(model, model)
    assert len(loaded) == 1


def lazy_right() -> None:
    loaded: list[object] = []
    lock = threading.Lock()  # held from looking into loaded to adding to it

    def model() -> object:
        with lock:
            if not loaded:
                loaded.append(object())
            return loaded[-1]

    together(model, model)
    assert len(loaded) == 1


def key_wrong() -> None:
    seats = {"12A": "free"}
    sold = []

    def book() -> None:
        if "12A" in seats:
            sold.append(seats.pop("12A"))

    together(book, book)
    assert sold == ["free"]


def key_right() -> None:
    seats = {"12A": "free"}
    sold = []

    def book() -> None:
        seat = seats.pop("12A", None)  # look and take in one operation of the dictionary
        if seat:
            sold.append(seat)

    together(book, book)
    assert sold == ["free"]


def none_wrong() -> None:
    log: list[str] | None = []

    def write() -> None:
        if log is not None:
            log.append("hello")

    def close() -> None:
        nonlocal log
        log = None

    together(write, close)


def none_right() -> None:
    log: list[str] | None = []

    def write() -> None:
        mine = log  # read once: nobody can take away what this name holds
        if mine is not None:
            mine.append("hello")

    def close() -> None:
        nonlocal log
        log = None

    together(write, close)


def iterate_wrong() -> None:
    sessions = {"ada": 1, "bob": 2}

    def expire() -> None:
        for name in sessions:
            sessions[name] -= 1

    def join() -> None:
        sessions["eve"] = 3

    together(expire, join)


def iterate_right() -> None:
    sessions = {"ada": 1, "bob": 2}
    lock = threading.Lock()  # held whenever sessions changes, and all the way through it

    def expire() -> None:
        with lock:
            for name in sessions:
                sessions[name] -= 1

    def join() -> None:
        with lock:
            sessions["eve"] = 3

    together(expire, join)


def double_checked_wrong() -> None:
    config: dict[str, int] | None = None
    lock = threading.Lock()  # held while config is made

    def port() -> None:
        nonlocal config
        if config is None:
            with lock:
                if config is None:
                    config = {}  # from here on the other thread takes it for finished
                    config["port"] = 80
        assert config["port"] == 80

    together(port, port)


def double_checked_right() -> None:
    config: dict[str, int] | None = None
    lock = threading.Lock()  # held while config is made

    def port() -> None:
        nonlocal config
        if config is None:
            with lock:
                if config is None:
                    complete = {}
                    complete["port"] = 80
                    config = complete
        assert config["port"] == 80

    together(port, port)


def publish_wrong() -> None:
    ready, data = False, 0

    def write() -> None:
        nonlocal ready, data
        ready = True
        data = 42

    def read() -> None:
        if ready:
            assert data == 42

    together(write, read)


def publish_right() -> None:
    data = 0
    ready = threading.Event()

    def write() -> None:
        nonlocal data
        data = 42
        ready.set()

    def read() -> None:
        ready.wait()
        assert data == 42

    together(write, read)


CHECKS = (
    Pair(
        "withdrawal below zero",
        "assertion",
        withdraw_wrong,
        withdraw_right,
        "Two steps that are each atomic are not atomic together.",
    ),
    Pair(
        "lazy loading twice",
        "assertion",
        lazy_wrong,
        lazy_right,
        "Check and act under one lock, or the check is history when you act.",
    ),
    Pair(
        "one seat sold twice",
        "exception",
        key_wrong,
        key_right,
        "Ask for forgiveness, not for permission: let one operation look and take.",
    ),
    Pair(
        "None after the check",
        "exception",
        none_wrong,
        none_right,
        "Read a shared name once and check what you hold.",
    ),
    Pair(
        "dict changed while iterated",
        "exception",
        iterate_wrong,
        iterate_right,
        "A loop over a shared collection is one long read.",
    ),
    Pair(
        "double-checked locking",
        "exception",
        double_checked_wrong,
        double_checked_right,
        "Publish a finished object: the fast path looks without the lock.",
    ),
    Pair(
        "flag before data",
        "assertion",
        publish_wrong,
        publish_right,
        "Write the data first, then say that it is there.",
    ),
)
