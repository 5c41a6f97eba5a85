"""An inert reader of the pickles that torch.save writes.

It interprets the opcodes itself. A global is only a name; what the pickle calls is looked up in one table
of our own functions, and all else is refused by name. So nothing that a file names is imported or called.
"""

import struct
from collections import OrderedDict
from collections.abc import Callable, Mapping
from typing import Any

from gemedge.capture import calls
from gemedge.capture.tree import Name, ObjectRecord, Tree, check_tree
from gemedge.errors import ModelError, UnsupportedError

MAX_OPCODES = 2_000_000
MAX_KEYS = 100_000
MAX_BYTES = 1 << 26
MAX_INT_BYTES = 9


def read(records: Mapping[str, memoryview]) -> Tree:
    """The tree in data.pkl of a torch.save archive, its tensors checked against the archive's records.

    Raises ModelError for what is damaged or hostile, UnsupportedError for sound tensors gemedge does not read.
    """
    if "data.pkl" not in records:
        raise ModelError("its record 'data.pkl' is missing")
    order = bytes(records.get("byteorder", b"little")[:16])
    if order != b"little":
        raise UnsupportedError(f"its numbers are in {order.decode(errors='replace')} byte order; gemedge reads little")
    tree = _Interpreter(bytes(records["data.pkl"][: MAX_BYTES + 1]), calls.Storages(records)).run()
    check_tree(tree)
    return tree


class _Interpreter:
    """A stack, a memo and a position; one method per opcode that torch.save emits."""

    def __init__(self, data: bytes, storages: calls.Storages) -> None:
        self.data = data
        self.storages = storages
        self.position = 0
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks under each open mark
        self.memo: dict[int, Any] = {}

    def run(self) -> Tree:
        if len(self.data) > MAX_BYTES:
            raise ModelError(f"its pickle is longer than {MAX_BYTES} bytes")
        for _ in range(MAX_OPCODES):
            opcode = self.take(1)[0]
            if opcode == _STOP:
                return self.result()
            method = _OPCODES.get(opcode)
            if method is None:
                raise ModelError(
                    f"its pickle has {_opcode_name(opcode)} at byte {self.position - 1}; torch writes none"
                )
            method(self)
        raise ModelError(f"its pickle has more than {MAX_OPCODES} opcodes")

    def result(self) -> Tree:
        if len(self.stack) != 1 or self.below or self.position != len(self.data):
            raise ModelError("its pickle does not end with exactly one value")
        return self.stack[0]

    # Reading

    def take(self, count: int) -> bytes:
        taken = self.data[self.position : self.position + count]
        if len(taken) < count:
            raise ModelError("its pickle is cut short")
        self.position += count
        return taken

    def number(self, width: int) -> int:
        return int.from_bytes(self.take(width), "little")

    def text(self, width: int) -> str:
        raw = self.take(self.number(width))
        try:
            return raw.decode("utf-8", "surrogatepass").encode().decode()
        except UnicodeError as error:
            raise ModelError(f"its pickle has a text that is not UTF-8 at byte {self.position - len(raw)}") from error

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 1000)
        raw = self.take(max(end - self.position, 0) + 1)
        if end < 0 or not raw.isascii():
            raise ModelError(f"its pickle has a bad name at byte {self.position}")
        return raw[:-1].decode()

    # The stack

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def pop(self) -> Any:
        if not self.stack:
            raise ModelError(f"its pickle takes a value that is not there, at byte {self.position - 1}")
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.below:
            raise ModelError(f"its pickle takes a mark that is not there, at byte {self.position - 1}")
        items, self.stack = self.stack, self.below.pop()
        return items

    def mark(self) -> None:
        self.below.append(self.stack)
        self.stack = []

    def put(self, index: int) -> None:
        self.push(value := self.pop())
        self.memo[index] = value

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ModelError(f"its pickle recalls value {index}, which it never stored")
        self.push(self.memo[index])

    # Values

    def protocol(self) -> None:
        version = self.number(1)
        if not 2 <= version <= 5:
            raise ModelError(f"its pickle has protocol {version}; 2 to 5 are allowed")

    def frame(self) -> None:
        self.number(8)  # a hint for buffered readers

    def long(self) -> None:
        length = self.number(1)
        if length > MAX_INT_BYTES:
            raise ModelError(f"its pickle has a number of {length} bytes; {MAX_INT_BYTES} are allowed")
        self.push(int.from_bytes(self.take(length), "little", signed=True))

    def append(self, items: list[Any]) -> None:
        target = self.pop()
        if type(target) is not list:
            raise ModelError(f"its pickle appends to a {type(target).__name__}")
        target.extend(items)
        self.push(target)

    def set_items(self, items: list[Any]) -> None:
        target = self.pop()
        if type(target) not in (dict, OrderedDict) or len(items) % 2:
            raise ModelError(f"its pickle sets {len(items)} keys and values of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if type(key) is not str and type(key) is not int:
                raise ModelError(f"its pickle has a dict key of type {type(key).__name__}; str and int are allowed")
            target[key] = value
        if len(target) > MAX_KEYS:
            raise ModelError(f"its pickle has a dict of more than {MAX_KEYS} keys")
        self.push(target)

    def add_items(self) -> None:
        items, target = self.pop_to_mark(), self.pop()
        if type(target) is not set or len(target) + len(items) > MAX_KEYS:
            raise ModelError(f"its pickle adds {len(items)} items to a {type(target).__name__}")
        target.update(calls.set_of_text((items,)))
        self.push(target)

    # Names and what is done with them

    def stack_global(self) -> None:
        qualname, module = self.pop(), self.pop()
        if type(module) is not str or type(qualname) is not str:
            raise ModelError("its pickle names a global by something that is no text")
        self.push(_name(module, qualname))

    def reduce(self) -> None:
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or type(function) is not Name:
            raise ModelError(f"its pickle calls a {type(function).__name__}, which is no name")
        self.push(calls.call(function, arguments))

    def persistent(self) -> None:
        self.push(self.storages.reference(self.pop()))

    def new_object(self) -> None:
        arguments, kind = self.pop(), self.pop()
        if type(kind) is not Name or arguments != ():
            raise ModelError(
                f"its pickle makes an object of {kind if type(kind) is Name else type(kind)} with arguments"
            )
        self.push(ObjectRecord(kind.module, kind.qualname))

    def build(self) -> None:
        state, target = self.pop(), self.pop()
        if type(state) is not dict or not all(type(key) is str for key in state):
            raise ModelError(f"its pickle gives a {type(target).__name__} a state that is no dict of names")
        if type(target) is ObjectRecord and target.state is None:
            target.state = state
        elif type(target) is not OrderedDict:  # a state dict's _metadata says nothing about its tensors
            raise ModelError(f"its pickle gives a {type(target).__name__} a state")
        self.push(target)

    def refuse_instance(self) -> None:
        raise ModelError(f"its pickle makes {_name(self.line(), self.line())} by INST; torch writes none")


def _name(module: str, qualname: str) -> Name:
    name = Name(module, qualname)
    if not module or not qualname or not str(name).isprintable() or " " in str(name) or len(str(name)) > 300:
        raise ModelError(f"its pickle names a global {str(name)[:80]!r}, which is no name")
    return name


def _float(self: _Interpreter) -> None:
    self.push(struct.unpack(">d", self.take(8))[0])


def _tuple(count: int) -> Callable[[_Interpreter], None]:
    def method(self: _Interpreter) -> None:
        items = [self.pop() for _ in range(count)]
        self.push(tuple(reversed(items)))

    return method


_STOP = ord(".")
_OPCODES: dict[int, Callable[[_Interpreter], None]] = {
    0x80: _Interpreter.protocol,
    0x95: _Interpreter.frame,
    ord("("): _Interpreter.mark,
    ord("N"): lambda self: self.push(None),
    0x88: lambda self: self.push(True),
    0x89: lambda self: self.push(False),
    ord("J"): lambda self: self.push(int.from_bytes(self.take(4), "little", signed=True)),
    ord("K"): lambda self: self.push(self.number(1)),
    ord("M"): lambda self: self.push(self.number(2)),
    0x8A: _Interpreter.long,
    ord("G"): _float,
    ord("X"): lambda self: self.push(self.text(4)),
    0x8C: lambda self: self.push(self.text(1)),
    0x8D: lambda self: self.push(self.text(8)),
    ord("}"): lambda self: self.push({}),
    ord("]"): lambda self: self.push([]),
    ord(")"): lambda self: self.push(()),
    0x8F: lambda self: self.push(set()),
    ord("t"): lambda self: self.push(tuple(self.pop_to_mark())),
    0x85: _tuple(1),
    0x86: _tuple(2),
    0x87: _tuple(3),
    ord("a"): lambda self: self.append([self.pop()]),
    ord("e"): lambda self: self.append(self.pop_to_mark()),
    ord("s"): lambda self: self.set_items([self.pop(), self.pop()][::-1]),
    ord("u"): lambda self: self.set_items(self.pop_to_mark()),
    0x90: _Interpreter.add_items,
    ord("q"): lambda self: self.put(self.number(1)),
    ord("r"): lambda self: self.put(self.number(4)),
    0x94: lambda self: self.put(len(self.memo)),
    ord("h"): lambda self: self.get(self.number(1)),
    ord("j"): lambda self: self.get(self.number(4)),
    ord("c"): lambda self: self.push(_name(self.line(), self.line())),
    0x93: _Interpreter.stack_global,
    ord("Q"): _Interpreter.persistent,
    ord("R"): _Interpreter.reduce,
    0x81: _Interpreter.new_object,
    ord("b"): _Interpreter.build,
    ord("i"): _Interpreter.refuse_instance,
}
_REFUSED = {
    ord("o"): "OBJ",
    0x82: "EXT1",
    0x83: "EXT2",
    0x84: "EXT4",
    0x92: "NEWOBJ_EX",
    0x97: "NEXT_BUFFER",
    ord("P"): "PERSID",
}


def _opcode_name(opcode: int) -> str:
    return f"the opcode {_REFUSED.get(opcode, f'{opcode:#04x}')}"
