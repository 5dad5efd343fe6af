"""Tensors of the Open Inference Protocol v2: every announcement that does not match is refused, none ends in a bug."""

from __future__ import annotations

import base64
import gzip
import json
import struct
import zlib

import numpy as np
import pytest

from deit.serve.refusals import Refusal
from deit.serve.routes.v2.bodies import Body, inflated, split
from deit.serve.routes.v2.outputs import Wanted, wanted_outputs, written
from deit.serve.routes.v2.tensors import Limits, input_kinds, read_images

KINDS = input_kinds((4, 6), 3)
LIMITS = Limits(images=4, pixels=1000, image_bytes=100)
MOST = 100_000


def read_body(body, headers, most):
    return split(inflated(body, headers.get("content-encoding", ""), most), headers)


def read(tensor: dict, binary: bytes = b""):
    kind, images = read_images(Body(header={"inputs": [tensor]}, binary=memoryview(binary)), KINDS, LIMITS)
    assert kind.name == tensor["name"]
    return images


def refused(call, *arguments, **options) -> Refusal:
    with pytest.raises(Refusal) as refusal:
        call(*arguments, **options)
    assert 400 <= refusal.value.status < 500
    assert len(refusal.value.message) < 1500
    return refusal.value


def image(shape, **more):
    return {"name": "image", "datatype": "BYTES", "shape": shape, **more}


def array(shape, **more):
    return {"name": "array", "datatype": "UINT8", "shape": shape, **more}


def pixels(shape, **more):
    return {"name": "pixels", "datatype": "FP32", "shape": shape, **more}


def of_size(size):
    return {"parameters": {"binary_data_size": size}}


# --- what is right ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [[2], [2, 1]])
def test_files_come_as_base64_or_as_bytes(shape):
    files = [b"\x89PNG\r\n", b"\xff\xd8"]
    texts = [base64.b64encode(file).decode() for file in files]
    assert read(image(shape, data=texts)) == files
    assert read(image(shape, data=[[text] for text in texts])) == files
    binary = b"".join(struct.pack("<I", len(file)) + file for file in files)
    assert read(image(shape, **of_size(len(binary))), binary) == files


def test_numbers_come_nested_flat_or_as_bytes():
    values = np.random.default_rng(0).normal(size=(2, 3, 4, 6)).astype(np.float32)
    for tensor, binary in [
        (pixels([2, 3, 4, 6], data=values.tolist()), b""),
        (pixels([2, 3, 4, 6], data=values.ravel().tolist()), b""),
        (pixels([2, 3, 4, 6], **of_size(values.nbytes)), values.tobytes()),
    ]:
        found = read(tensor, binary)
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, values)
    colors = np.random.default_rng(0).integers(0, 256, (1, 2, 5, 3), np.uint8)
    np.testing.assert_array_equal(read(array([1, 2, 5, 3], data=colors.tolist())), colors)
    np.testing.assert_array_equal(read(array([1, 2, 5, 3], **of_size(30)), colors.tobytes()), colors)


# --- what is wrong ---------------------------------------------------------------------------------

LARGE = 10**400


@pytest.mark.parametrize(
    ("tensor", "binary", "reason"),
    [
        (image([2], data=["YQ=="]), b"", "wrong_size"),
        (image([1], data=["not base64!"]), b"", "bad_data"),
        (image([1], data=["é"]), b"", "bad_data"),
        (image([1], data=[1]), b"", "bad_data"),
        (image([1], data="YQ=="), b"", "bad_data"),
        (image([1]), b"", "bad_data"),
        (image([1], data=["YWFh" * 50]), b"", "image_too_large"),
        (image([5], data=["YQ=="] * 5), b"", "too_many_images"),
        (image([2**31 - 1], data=["YQ=="]), b"", "too_many_images"),
        (image([2**31], data=["YQ=="]), b"", "wrong_shape"),
        (image([LARGE], data=["YQ=="]), b"", "wrong_shape"),
        (image([-1], data=["YQ=="]), b"", "wrong_shape"),
        (image([0], data=[]), b"", "wrong_shape"),
        (image([True], data=["YQ=="]), b"", "wrong_shape"),
        (image([1.0], data=["YQ=="]), b"", "wrong_shape"),
        (image(["1"], data=["YQ=="]), b"", "wrong_shape"),
        (image([1, 2], data=["YQ=="] * 2), b"", "wrong_shape"),
        (image([1] * 1000, data=["YQ=="]), b"", "wrong_shape"),
        (image([], data=["YQ=="]), b"", "wrong_shape"),
        (image(None, data=["YQ=="]), b"", "wrong_shape"),
        (image({}, data=["YQ=="]), b"", "wrong_shape"),
        (image([1], **of_size(3)), b"abc", "wrong_size"),
        (image([1], **of_size(4)), b"abc", "wrong_size"),
        (image([1], **of_size(2)), b"abc", "wrong_size"),
        (image([1], **of_size(-1)), b"abc", "wrong_size"),
        (image([1], **of_size(True)), b"a", "wrong_size"),
        (image([1], **of_size("3")), b"abc", "wrong_size"),
        (image([1], **of_size(LARGE)), b"abc", "wrong_size"),
        (image([1], data=["YQ=="]), b"abc", "wrong_size"),
        (image([1], data=["YQ=="], **of_size(5)), b"\x01\0\0\0a", "wrong_size"),
        (image([1], **of_size(5)), b"\xff\xff\xff\xffa", "wrong_size"),
        (image([1], **of_size(6)), b"\x01\0\0\0ab", "wrong_size"),
        (image([2], **of_size(5)), b"\x01\0\0\0a", "wrong_size"),
        (image([1], data=["YQ=="], parameters=[]), b"", "bad_parameters"),
        (image([1], parameters={"shared_memory_region": "x"}), b"", "unsupported"),
        (array([1, 2, 2, 3], data=[0] * 11), b"", "wrong_size"),
        (array([1, 2, 2, 3], data=[256] * 12), b"", "bad_data"),
        (array([1, 2, 2, 3], data=[-1] * 12), b"", "bad_data"),
        (array([1, 2, 2, 3], data=[0.5] * 12), b"", "bad_data"),
        (array([1, 2, 2, 3], data=[True] * 12), b"", "bad_data"),
        (array([1, 2, 2, 3], data=[LARGE] * 12), b"", "bad_data"),
        (array([1, 2, 2, 4], data=[0] * 16), b"", "wrong_shape"),
        (array([1, 3, 2], data=[0] * 6), b"", "wrong_shape"),
        (array([1, 1000, 1000, 3], **of_size(0)), b"", "too_many_pixels"),
        (array([1, 2**31 - 1, 2**31 - 1, 3], **of_size(0)), b"", "too_many_pixels"),
        (array([1, 2, 2, 3], **of_size(11)), b"a" * 11, "wrong_size"),
        (pixels([1, 3, 6, 4], data=[0.0] * 72), b"", "wrong_shape"),
        (pixels([1, 3, 4, 6], data=[0.0] * 71 + ["0"]), b"", "bad_data"),
        (pixels([1, 3, 4, 6], data=[0.0] * 71 + [None]), b"", "bad_data"),
        (pixels([1, 3, 4, 6], data=[0.0] * 71 + [True]), b"", "bad_data"),
        (pixels([1, 3, 4, 6], data=[0.0] * 71 + [1e39]), b"", "bad_data"),
        (pixels([1, 3, 4, 6], data=[0.0] * 71 + [LARGE]), b"", "bad_data"),
        (pixels([1, 3, 4, 6], data=["a" * 1_000_000] + [1] * 71), b"", "bad_data"),
        (pixels([1, 3, 4, 6], data=[[0.0] * 36, [0.0] * 35]), b"", "bad_data"),
        (pixels([1, 3, 4, 6], data=[[0.0] * 36, [0.0] * 36]), b"", "wrong_size"),
        (pixels([1, 3, 4, 6], data=[[[[[0.0] * 72]]]]), b"", "wrong_size"),
        (pixels([1, 3, 4, 6], data=[[], []]), b"", "wrong_size"),
        (pixels([1, 3, 4, 6], data=[]), b"", "wrong_size"),
        (pixels([1, 3, 4, 6], data={}), b"", "bad_data"),
        (pixels([1, 3, 4, 6], **of_size(288)), struct.pack("<f", float("nan")) * 72, "bad_data"),
        (pixels([1, 3, 4, 6], **of_size(288)), struct.pack("<f", float("inf")) * 72, "bad_data"),
        (pixels([1, 3, 4, 6], **of_size(288)), struct.pack("<f", -3e38) * 72, "bad_data"),  # a model would overflow
        ({"name": "image", "shape": [1], "data": ["YQ=="]}, b"", "wrong_datatype"),
        ({"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}, b"", "wrong_datatype"),
        ({"name": "pixels", "datatype": "FP16", "shape": [1, 3, 4, 6], **of_size(144)}, b"a" * 144, "wrong_datatype"),
        ({"name": "image", "datatype": ["BYTES"], "shape": [1], "data": ["YQ=="]}, b"", "wrong_datatype"),
        ({"name": "input", "datatype": "BYTES", "shape": [1], "data": ["YQ=="]}, b"", "unknown_input"),
        ({"name": {"a": 1}, "datatype": "BYTES", "shape": [1], "data": ["YQ=="]}, b"", "unknown_input"),
        ({}, b"", "unknown_input"),
    ],
)
def test_a_tensor_that_does_not_match_is_refused(tensor, binary, reason):
    assert refused(read, tensor, binary).reason == reason


@pytest.mark.parametrize("inputs", [None, {}, "image", [], [1], [None], [{"name": "image"}] * 2, [image([1])] * 1000])
def test_a_request_holds_one_tensor(inputs):
    body = Body(header={"inputs": inputs}, binary=memoryview(b""))
    assert refused(read_images, body, KINDS, LIMITS).reason == "bad_inputs"


# --- bodies ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pack", "encoding"),
    [(bytes, ""), (bytes, "identity"), (gzip.compress, "gzip"), (zlib.compress, "deflate"), (gzip.compress, " GZIP ")],
)
def test_bodies_may_be_compressed(pack, encoding):
    header = json.dumps({"id": "1"}).encode()
    headers = {"content-encoding": encoding, "inference-header-content-length": str(len(header))}
    body = read_body(pack(header + b"tail"), headers, MOST)
    assert body.header == {"id": "1"}
    assert bytes(body.binary) == b"tail"


def test_a_gzip_body_may_have_parts():
    assert read_body(gzip.compress(b'{"id"') + gzip.compress(b':"1"}'), {"content-encoding": "gzip"}, MOST).header


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"1", b'"a"', b"null", b"\xff\xfe", b'{"a": NaN}', b'{"a": -Infinity}']
)
def test_what_is_no_json_object_is_refused(content):
    assert refused(read_body, content, {}, MOST).reason == "bad_json"


def test_ten_megabytes_of_nesting_are_refused():
    for opening in (b"[", b'{"a":', b'{"inputs":['):
        assert refused(read_body, opening * (10_000_000 // len(opening)), {}, 20_000_000).reason == "bad_json"


def test_a_number_of_a_million_digits_is_refused():
    assert refused(read_body, b'{"id": ' + b"9" * 1_000_000 + b"}", {}, 20_000_000).reason == "bad_json"


@pytest.mark.parametrize("length", ["", "-1", "1.0", "x", "0x2", "3", "9" * 5000, "²", "1 1"])
def test_a_header_length_that_cannot_be_is_refused(length):
    assert refused(read_body, b"{}", {"inference-header-content-length": length}, MOST).reason == "bad_header_length"


def test_a_forgotten_header_length_is_named():
    assert "Inference-Header-Content-Length" in refused(read_body, b"\x05\0\0\0{}", {}, MOST).message


@pytest.mark.parametrize(  # without a time in the bodies, which are names of tests: all workers must find the same ones
    ("body", "encoding", "reason"),
    [
        (b"a" * (MOST + 1), "", "body_too_large"),
        (gzip.compress(b"a" * (MOST + 1), mtime=0), "gzip", "body_too_large"),
        (zlib.compress(b"a" * 50_000_000), "deflate", "body_too_large"),
        (gzip.compress(b"a" * 60_000, mtime=0) * 2, "gzip", "body_too_large"),
        (gzip.compress(b"{}", mtime=0)[:-3], "gzip", "damaged_body"),
        (b"{}", "gzip", "damaged_body"),
        (gzip.compress(b"{}", mtime=0) + b"tail", "gzip", "damaged_body"),
        (gzip.compress(b"", mtime=0) * 200_000, "gzip", "damaged_body"),  # took minutes, which no deadline ended
        (zlib.compress(b"{}") + b"tail", "deflate", "damaged_body"),
        (b"{}", "br", "unsupported_encoding"),
        (b"{}", "gzip, gzip", "unsupported_encoding"),
        (b"{}", "x" * 1000, "unsupported_encoding"),
    ],
)
def test_a_compressed_body_cannot_outgrow_the_limit(body, encoding, reason):
    assert refused(read_body, body, {"content-encoding": encoding}, MOST).reason == reason


# --- outputs ---------------------------------------------------------------------------------------

NAMES = ("scores", "labels")


def test_everything_is_answered_unless_outputs_are_named():
    assert wanted_outputs({}, NAMES) == [Wanted(name="scores"), Wanted(name="labels")]
    every = {"parameters": {"binary_data_output": True}}
    assert wanted_outputs(every, NAMES) == [Wanted(name=name, binary=True) for name in NAMES]
    outputs = [
        {"name": "labels", "parameters": {"binary_data": False}},
        {"name": "scores", "parameters": {"classification": 3}},
    ]
    assert wanted_outputs({**every, "outputs": outputs}, NAMES) == [
        Wanted(name="labels"),
        Wanted(name="scores", binary=True, best=3),
    ]


@pytest.mark.parametrize(
    "header",
    [
        {"outputs": "scores"},
        {"outputs": ["scores"]},
        {"outputs": [{}]},
        {"outputs": [{"name": "other"}]},
        {"outputs": [{"name": ["scores"]}]},
        {"outputs": [{"name": "scores"}] * 2},
        {"outputs": [{"name": "scores", "parameters": 1}]},
        {"outputs": [{"name": "scores", "parameters": {"binary_data": 1}}]},
        {"outputs": [{"name": "scores", "parameters": {"classification": -1}}]},
        {"outputs": [{"name": "scores", "parameters": {"classification": "3"}}]},
        {"outputs": [{"name": "scores", "parameters": {"classification": True}}]},
        {"outputs": [{"name": "labels", "parameters": {"classification": 1}}]},
        {"outputs": [{"name": "scores", "parameters": {"shared_memory_region": "a"}}]},
        {"parameters": []},
        {"parameters": {"binary_data_output": "yes"}},
    ],
)
def test_outputs_that_cannot_be_are_refused(header):
    refused(wanted_outputs, header, NAMES)


def test_answers_are_written_as_json_and_as_bytes():
    values = {"scores": np.array([[0.25, 0.75], [0.5, 0.5]], np.float32), "labels": ["wren", "rüßel"]}
    body, length = written({"model_name": "birds"}, wanted_outputs({}, NAMES), values, ["robin", "wren"])
    assert length is None
    assert json.loads(body) == {
        "model_name": "birds",
        "outputs": [
            {"name": "scores", "datatype": "FP32", "shape": [2, 2], "data": [0.25, 0.75, 0.5, 0.5]},
            {"name": "labels", "datatype": "BYTES", "shape": [2], "data": ["wren", "rüßel"]},
        ],
    }
    wanted = [Wanted(name="labels", binary=True), Wanted(name="scores", binary=True), Wanted(name="scores", best=1)]
    body, length = written({}, wanted, values, ["robin", "wren"])
    header = json.loads(body[:length])
    assert header["outputs"][0]["parameters"] == {"binary_data_size": 4 + 4 + 4 + 7}
    assert header["outputs"][2] == {
        "name": "scores", "datatype": "BYTES", "shape": [2, 1], "data": ["0.750000:1:wren", "0.500000:0:robin"]
    }  # fmt: skip
    texts = b"\x04\0\0\0wren\x07\0\0\0" + "rüßel".encode()
    assert body[length:] == texts + values["scores"].tobytes()
