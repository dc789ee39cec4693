"""Loops over vectors of samples, which numba compiles; this module is imported only if numba is installed.

A compiler does not keep the sums of many samples in registers by itself: it loads and stores them for every few
weights. Therefore two functions are written as LLVM code. `_sums` adds all weights of an output to the sums of 64, 32
or 8 samples, which stay in registers meanwhile. `_turn_block` transposes eight rows and eight columns by shuffling
vectors. LLVM translates both for the vectors that the processor has, which may be shorter.

For each sample, the sums run in the order of the weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from avalanche_supermask.loops import jit

__all__ = ["convolution", "linear", "products", "turn"]

SIDE = 8  # rows and columns of a transposed block; the counts of samples are rounded up to multiples of it
_INDEX = ir.IntType(64)


def _lanes(count: int, value: Any, code: Any) -> Any:
    """LLVM code: a vector of equal numbers."""
    empty = ir.Constant(ir.VectorType(value.type, count), ir.Undefined)
    first = code.insert_element(empty, value, ir.Constant(ir.IntType(32), 0))
    return code.shuffle_vector(first, empty, ir.Constant(ir.VectorType(ir.IntType(32), count), [0] * count))


def _sums(lanes: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def sums(
        context: Any, out: Any, at: Any, source: Any, places: Any, values: Any, first: Any, last: Any, bias: Any,
        scale: Any,
    ) -> Any:  # fmt: skip
        """``out[at + j] = bias + Σ_k values[k] * source[places[k] * scale + at + j]`` for all lanes j."""
        index = types.int64
        signature = types.void(out, index, source, places, values, index, index, bias, index)

        def generate(context: Any, code: Any, signature: Any, arguments: Any) -> Any:
            out, at, source, places, values, first, last, bias, scale = arguments
            out, source, places, values = (
                context.make_array(kind)(context, code, array).data
                for kind, array in zip(
                    (signature.args[0], *signature.args[2:5]), (out, source, places, values), strict=True
                )
            )
            bytes_each = context.get_abi_sizeof(bias.type)
            start = code.gep(source, [at])
            begin = _lanes(lanes, bias, code)
            before = code.block
            check, step, end = (code.function.append_basic_block(name) for name in ("check", "step", "end"))
            code.branch(check)
            code.position_at_end(check)
            k, total = code.phi(_INDEX), code.phi(begin.type)
            k.add_incoming(first, before)
            total.add_incoming(begin, before)
            code.cbranch(code.icmp_signed("<", k, last), step, end)
            code.position_at_end(step)
            place = code.mul(code.sext(code.load(code.gep(places, [k])), _INDEX), scale)
            x = code.load(code.bitcast(code.gep(start, [place]), begin.type.as_pointer()), align=bytes_each)
            value = _lanes(lanes, code.load(code.gep(values, [k])), code)
            # "contract" lets LLVM fuse the product and the sum.
            more = code.fadd(total, code.fmul(x, value, flags=["contract"]), flags=["contract"])
            k.add_incoming(code.add(k, ir.Constant(_INDEX, 1)), step)
            total.add_incoming(more, step)
            code.branch(check)
            code.position_at_end(end)
            code.store(total, code.bitcast(code.gep(out, [at]), begin.type.as_pointer()), align=bytes_each)
            return context.get_dummy_value()

        return signature, generate

    return sums


_sums_64, _sums_32, _sums_8 = _sums(64), _sums(32), _sums(8)


def _dots(lanes: int) -> Any:
    @intrinsic  # type: ignore[untyped-decorator]
    def dots(context: Any, x: Any, x_at: Any, y: Any, y_at: Any, count: Any) -> Any:
        """``Σ x[x_at + j] * y[y_at + j]`` for j from 0 to ``count * lanes``; the order of the sum is fixed."""
        index = types.int64
        signature = x.dtype(x, index, y, index, index)

        def generate(context: Any, code: Any, signature: Any, arguments: Any) -> Any:
            x, x_at, y, y_at, count = arguments
            x, y = (
                context.make_array(kind)(context, code, array).data
                for kind, array in ((signature.args[0], x), (signature.args[2], y))
            )
            number = context.get_data_type(signature.return_type)
            bytes_each = context.get_abi_sizeof(number)
            vector = ir.VectorType(number, lanes)
            zero = ir.Constant(vector, [ir.Constant(number, 0.0)] * lanes)
            before = code.block
            check, step, end = (code.function.append_basic_block(name) for name in ("check", "step", "end"))
            code.branch(check)
            code.position_at_end(check)
            k, total = code.phi(_INDEX), code.phi(vector)
            k.add_incoming(ir.Constant(_INDEX, 0), before)
            total.add_incoming(zero, before)
            code.cbranch(code.icmp_signed("<", k, count), step, end)
            code.position_at_end(step)
            offset = code.mul(k, ir.Constant(_INDEX, lanes))
            a, b = (
                code.load(code.bitcast(code.gep(data, [code.add(at, offset)]), vector.as_pointer()), align=bytes_each)
                for data, at in ((x, x_at), (y, y_at))
            )
            more = code.fadd(total, code.fmul(a, b, flags=["contract"]), flags=["contract"])
            k.add_incoming(code.add(k, ir.Constant(_INDEX, 1)), step)
            total.add_incoming(more, step)
            code.branch(check)
            code.position_at_end(end)
            result, left = total, lanes
            while left > 1:  # The upper half is added to the lower one.
                left //= 2
                kind = ir.VectorType(ir.IntType(32), left)
                low, high = (
                    code.shuffle_vector(result, result, ir.Constant(kind, [*range(first, first + left)]))
                    for first in (0, left)
                )
                result = code.fadd(low, high)
            return code.extract_element(result, ir.Constant(ir.IntType(32), 0))

        return signature, generate

    return dots


_dots_64, _dots_8 = _dots(64), _dots(8)

_NEIGHBOURS = ([0, 8, 1, 9, 4, 12, 5, 13], [2, 10, 3, 11, 6, 14, 7, 15])
_PAIRS = ([0, 1, 8, 9, 4, 5, 12, 13], [2, 3, 10, 11, 6, 7, 14, 15])
_HALVES = ([0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15])


@intrinsic  # type: ignore[untyped-decorator]
def _turn_block(context: Any, x: Any, row: Any, column: Any, out: Any) -> Any:
    """``out[column : column + 8, row : row + 8] = x[row : row + 8, column : column + 8].T``."""
    signature = types.void(x, types.int64, types.int64, out)

    def generate(context: Any, code: Any, signature: Any, arguments: Any) -> Any:
        x, row, column, out = arguments
        x, out = (
            context.make_array(kind)(context, code, array)
            for kind, array in ((signature.args[0], x), (signature.args[3], out))
        )
        number = context.get_data_type(signature.args[0].dtype)
        vector = ir.VectorType(number, SIDE)
        bytes_each = context.get_abi_sizeof(number)

        def rows(array: Any, first: Any, across: Any) -> list[Any]:
            stride = cgutils.unpack_tuple(code, array.strides, 2)[0]
            start = code.ptrtoint(code.gep(array.data, [across]), _INDEX)
            places = [code.add(start, code.mul(code.add(first, ir.Constant(_INDEX, i)), stride)) for i in range(SIDE)]
            return [code.inttoptr(place, vector.as_pointer()) for place in places]

        def mixed(vectors: list[Any], pairs: list[tuple[int, int]], masks: Any) -> list[Any]:
            kind = ir.VectorType(ir.IntType(32), SIDE)
            return [
                code.shuffle_vector(vectors[a], vectors[b], ir.Constant(kind, mask)) for a, b in pairs for mask in masks
            ]

        lines = [code.load(place, align=bytes_each) for place in rows(x, row, column)]
        lines = mixed(lines, [(0, 1), (2, 3), (4, 5), (6, 7)], _NEIGHBOURS)
        lines = mixed(lines, [(0, 2), (1, 3), (4, 6), (5, 7)], _PAIRS)
        low, high = (mixed(lines, [(i, i + 4) for i in range(4)], [mask]) for mask in _HALVES)
        for line, place in zip(low + high, rows(out, column, row), strict=True):
            code.store(line, place, align=bytes_each)
        return context.get_dummy_value()

    return signature, generate


def _turn(x: Any, out: Any) -> None:
    """``out[:, : len(x)] = x.T`` for matrices whose rows are contiguous."""
    rows, columns = len(x) // SIDE * SIDE, x.shape[1] // SIDE * SIDE
    for column in range(0, columns, SIDE):
        for row in range(0, rows, SIDE):
            _turn_block(x, row, column, out)
    for column in range(x.shape[1]):
        for row in range(rows if column < columns else 0, len(x)):
            out[column, row] = x[row, column]


turn = jit(_turn)


def _products(starts: Any, columns: Any, x: Any, y: Any, out: Any, first: int, last: int) -> None:
    """``out[k] = x[row] · y[columns[k]]`` for the entries k of each row; the rows of x and y are contiguous."""
    n = x.shape[1]
    flat_x, flat_y = x.reshape(-1), y.reshape(-1)
    long, short = n // 64, n % 64 // SIDE
    for row in range(first, last):
        at = row * n
        for k in range(starts[row], starts[row + 1]):
            other = columns[k] * n
            total = _dots_64(flat_x, at, flat_y, other, long)
            if short:
                total += _dots_8(flat_x, at + long * 64, flat_y, other + long * 64, short)
            for j in range(long * 64 + short * SIDE, n):
                total += x[row, j] * y[columns[k], j]
            out[k] = total


products = jit(_products)


def _sum_row(
    out: Any, length: int, source: Any, places: Any, values: Any, first: int, last: int, bias: Any, scale: int
) -> None:
    at = 0
    while at + 64 <= length:
        _sums_64(out, at, source, places, values, first, last, bias, scale)
        at += 64
    if at + 32 <= length:
        _sums_32(out, at, source, places, values, first, last, bias, scale)
        at += 32
    while at < length:
        _sums_8(out, at, source, places, values, first, last, bias, scale)
        at += 8


sum_row = jit(_sum_row)


def _linear(
    starts: Any, places: Any, values: Any, bias: Any, x: Any, out: Any, width: int, b_from: int, b_to: int,
    r_from: int, r_to: int,
) -> None:  # fmt: skip
    source = np.empty((x.shape[1], width), x.dtype)
    rows = np.empty((SIDE, width), x.dtype)
    flat = source.reshape(-1)
    for start in range(b_from, b_to, width):
        n = min(width, b_to - start)
        length = (n + SIDE - 1) // SIDE * SIDE
        turn(x[start : start + n], source)
        if n < length:
            source[:, n:length] = 0
        for first in range(r_from, r_to, SIDE):
            last = min(first + SIDE, r_to)
            for r in range(first, last):
                sum_row(rows[r - first], length, flat, places, values, starts[r], starts[r + 1], bias[r], width)
            turn(rows[: last - first, :n], out[start : start + n, first:last])


linear = jit(_linear, error_model="numpy")


def _convolution(
    starts: Any, places: Any, values: Any, bias: Any, x: Any, out: Any, geometry: Any, b_from: int, b_to: int,
    r_from: int, r_to: int,
) -> None:  # fmt: skip
    stride_y, stride_x, pad_y, pad_x, phases_y, phases_x, height, width, at_once = geometry
    above, beside = out.shape[2], out.shape[3]
    size = phases_y * phases_x * x.shape[1] * height * width * at_once
    length = (((above - 1) * width + beside) * at_once + SIDE - 1) // SIDE * SIDE
    flat = np.zeros(size + SIDE, x.dtype)  # The last vector of a row may reach beyond the images.
    source = flat[:size].reshape((phases_y, phases_x, x.shape[1], height, width, at_once))
    row = np.empty(length, x.dtype)
    for start in range(b_from, b_to, at_once):
        n = min(at_once, b_to - start)
        for c in range(x.shape[1]):
            for line in range(x.shape[2]):
                phase_y, y = (line + pad_y) % stride_y, (line + pad_y) // stride_y
                if phase_y >= phases_y or y >= height:
                    continue
                for b in range(n):
                    pixels = x[start + b, c, line]
                    if stride_x == 1 and at_once == 1:
                        source[phase_y, 0, c, y, pad_x : pad_x + len(pixels), 0] = pixels
                        continue
                    for place in range(len(pixels)):
                        phase_x, across = (place + pad_x) % stride_x, (place + pad_x) // stride_x
                        if phase_x < phases_x and across < width:
                            source[phase_y, phase_x, c, y, across, b] = pixels[place]
        for r in range(r_from, r_to):
            sum_row(row, length, flat, places, values, starts[r], starts[r + 1], bias[r], 1)
            for b in range(n):
                for y in range(above):
                    target = out[start + b, r, y]
                    if at_once == 1:
                        target[:] = row[y * width : y * width + beside]
                        continue
                    for across in range(beside):
                        target[across] = row[(y * width + across) * at_once + b]


convolution = jit(_convolution, error_model="numpy")
