"""The Open Inference Protocol, asked by Triton's own client."""

import json

import cv2
import numpy as np
import pytest

from steelsight.defects import Verdict

triton = pytest.importorskip("tritonclient.http", reason="needs tritonclient")


@pytest.fixture(scope="module")
def client(service):
    with triton.InferenceServerClient(service.url.removeprefix("http://")) as asked:
        yield asked


@pytest.fixture(scope="module")
def model(service):
    name, _, version = service.client.get("/v1/models").json()["active"]["model"].rpartition("@")
    return name, version


def given(images, *, binary=True):
    tensor = triton.InferInput("image", [len(images)], "BYTES")
    tensor.set_data_from_numpy(np.array(images, np.object_), binary_data=binary)
    return tensor


def results_of(answer):
    lines = [json.loads(line) for line in answer.as_numpy("result")]
    verdicts = [
        one.decode() if isinstance(one, bytes) else one for one in answer.as_numpy("verdict")
    ]
    assert verdicts == [line["verdict"] for line in lines]
    return lines


def test_a_client_finds_the_model(client, model):
    name, version = model
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(name)
    assert client.is_model_ready(name, version)
    metadata = client.get_model_metadata(name)
    assert metadata["versions"] == [version]
    assert metadata["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
    with pytest.raises(triton.InferenceServerException, match=name):
        client.get_model_metadata("other")


def test_encoded_images_get_the_verdicts_of_the_service(client, service, model):
    images = [service.sample(1), service.sample(6), b"junk"]
    expected = [service.inspect(image).json() for image in images]
    lines = results_of(client.infer(model[0], [given(images)], request_id="coil-9"))
    for n, (line, single) in enumerate(zip(lines, expected, strict=True)):
        assert line["image"] == f"coil-9-{n}"
        for key in ("sha256", "verdict", "reason", "defects", "faulty_probability"):
            assert line[key] == single[key]
    assert lines[2]["verdict"] == Verdict.UNKNOWN.value


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("colour", [False, True])
def test_pixels_get_the_verdict_of_their_png(client, service, model, binary, colour):
    grey_hw = cv2.imdecode(np.frombuffer(service.sample(1), np.uint8), cv2.IMREAD_GRAYSCALE)
    if not binary:
        grey_hw = grey_hw[:96, :128]
    pixels = np.repeat(grey_hw[..., None], 3, axis=2) if colour else grey_hw
    tensor = triton.InferInput("image", [1, *pixels.shape], "UINT8")
    tensor.set_data_from_numpy(pixels[None], binary_data=binary)
    (line,) = results_of(client.infer(model[0], [tensor]))
    png = cv2.imencode(".png", grey_hw)[1].tobytes()
    single = service.inspect(png, "x.png", headers={"Content-Type": "image/png"}).json()
    assert line["size_wh"] == [grey_hw.shape[1], grey_hw.shape[0]]
    assert (line["verdict"], line["defects"]) == (single["verdict"], single["defects"])


def test_colours_are_not_exchanged(client, service, model):
    """Red as the client means it must be red in the frame that is kept."""
    pixels = np.zeros((1, 96, 128, 3), np.uint8)
    pixels[..., 0] = np.random.default_rng(2).integers(150, 255, (96, 128))
    tensor = triton.InferInput("image", list(pixels.shape), "UINT8")
    tensor.set_data_from_numpy(pixels)
    (line,) = results_of(client.infer(model[0], [tensor]))
    assert line["reason"] == "coloured"
    kept = service.client.get(f"/v1/results/{line['id']}/frame").content
    bgr = cv2.imdecode(np.frombuffer(kept, np.uint8), cv2.IMREAD_COLOR)
    assert (bgr[..., ::-1] == pixels[0]).all()


def test_base64_is_taken_in_json(service, model):
    import base64

    text = base64.b64encode(service.sample(1)).decode()
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [text]}
    asked = {"id": "7", "inputs": [tensor], "outputs": [{"name": "verdict"}]}
    answer = service.client.post(f"/v2/models/{model[0]}/infer", json=asked).json()
    assert (answer["id"], answer["model_name"], answer["model_version"]) == ("7", *model)
    assert [one["name"] for one in answer["outputs"]] == ["verdict"]
    assert answer["outputs"][0]["data"] == ["NG"]


TENSOR = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["aGk="]}


@pytest.mark.parametrize(
    "inputs",
    [
        [],
        [TENSOR, TENSOR],
        [TENSOR | {"name": "pixels"}],
        [TENSOR | {"shape": [2]}],
        [TENSOR | {"shape": [-1]}],
        [TENSOR | {"shape": [1 << 62]}],
        [TENSOR | {"datatype": "FP32"}],
        [TENSOR | {"data": ["%%"]}],
        [TENSOR | {"data": [5]}],
        [TENSOR | {"data": None}],
        [TENSOR | {"parameters": {"binary_data_size": 5}}],
        [TENSOR | {"datatype": "UINT8", "shape": [1, 2, 2], "data": [1, 2, 3]}],
        [TENSOR | {"datatype": "UINT8", "shape": [1, 2, 2], "data": [1, 2, 3, 300]}],
        [TENSOR | {"datatype": "UINT8", "shape": [1, 2, 2], "data": [1, 2, 3, "x"]}],
        [TENSOR | {"datatype": "UINT8", "shape": [1, 2, 2], "data": [1, 2, 3, [4]]}],
        [TENSOR | {"datatype": "UINT8", "shape": [1, 2, 2, 4], "data": [0] * 16}],
        [TENSOR | {"datatype": "UINT8", "shape": [1, 0, 5], "data": []}],
        [TENSOR | {"datatype": "UINT8", "shape": [1, 1 << 20, 1 << 20], "data": []}],
    ],
)
def test_what_cannot_be_understood_is_told(service, model, inputs):
    answer = service.client.post(f"/v2/models/{model[0]}/infer", json={"inputs": inputs})
    assert answer.status_code == 400, answer.text
    error = answer.json()
    assert error["code"] == "no-inference"
    assert "expected" in error["error"]
    assert error["id"] == answer.headers["x-request-id"]


@pytest.mark.parametrize("length", ["-1", "x", "999999", "5"])
def test_a_wrong_header_length_is_told(service, model, length):
    answer = service.client.post(
        f"/v2/models/{model[0]}/infer",
        content=json.dumps({"inputs": [TENSOR]}),
        headers={"Inference-Header-Content-Length": length},
    )
    assert answer.status_code == 400
