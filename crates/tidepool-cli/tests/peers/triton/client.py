"""A user of NVIDIA's tritonclient, as it comes from PyPI, beside a ranker.

Called with a JSON file: where the ranker listens, the rows of its tables as the cluster serves them, and the ONNX graph
of its model. Everything that is inferred is compared with ONNX Runtime, fed with vectors that are pooled here. The last
line of its output says how much was compared, and the largest difference.
"""

import asyncio
import json
import sys

import numpy as np
import onnxruntime
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException

MODEL = "m"
# No table has it: its default row is what is ranked by.
NOWHERE = 10**15


class Reference:
    """The model on ONNX Runtime, with vectors pooled in f64."""

    def __init__(self, site):
        self.tables = site["tables"]
        self.session = onnxruntime.InferenceSession(site["onnx"], providers=["CPUExecutionProvider"])
        self.compared = 0
        self.largest = 0.0

    def ids(self, table):
        return sorted(int(identity) for identity in self.tables[table]["rows"])

    def pooled(self, table, ids, mean=False):
        found = [self.tables[table]["rows"].get(str(identity)) for identity in ids]
        found = np.array([row for row in found if row is not None], dtype=np.float64)
        if len(found) == 0:
            return np.array(self.tables[table]["default"], dtype=np.float32)
        return (found.mean(axis=0) if mean else found.sum(axis=0)).astype(np.float32)

    def score(self, user, items, genres):
        rows = len(items)
        same = lambda values: np.repeat(np.asarray(values, dtype=np.float32)[None, :], rows, axis=0)
        inputs = {
            "user": same(self.pooled("user", [user["user"]])),
            "occupation": same(self.pooled("occupation", [user["occupation"]])),
            "age": same([user["age"]]),
            "gender": same([user["gender"]]),
            "item": np.stack([self.pooled("item", [item]) for item in items]),
            "genres": np.stack([self.pooled("genre", of, mean=True) for of in genres]),
        }
        names = [wanted.name for wanted in self.session.get_inputs()]
        assert sorted(names) == sorted(inputs), names
        (scores,) = self.session.run(["probability"], inputs)
        return scores.reshape(-1)

    def check(self, found, wanted, what):
        assert found.dtype == np.float32 and found.shape == wanted.shape, (what, found.shape, wanted.shape)
        difference = float(np.max(np.abs(found - wanted)))
        assert difference <= 1e-5, f"{what}: off by {difference}: {found} {wanted}"
        self.compared += len(found)
        self.largest = max(self.largest, difference)


def tensors(user, items, genres):
    """What is sent: names, and arrays of the datatypes that the metadata list."""
    flat = [genre for of in genres for genre in of]
    return {
        "user": np.array([user["user"]], dtype=np.int64),
        "occupation": np.array([user["occupation"]], dtype=np.uint64),
        "age": np.array([[user["age"]]], dtype=np.float32),
        "gender": np.array([[user["gender"]]], dtype=np.float32),
        "item": np.array(items, dtype=np.uint64).reshape(-1, 1),
        "genres": np.array(flat, dtype=np.int64),
        "genres_lengths": np.array([len(of) for of in genres], dtype=np.int32),
    }


DATATYPES = {"int64": "INT64", "uint64": "UINT64", "int32": "INT32", "float32": "FP32"}


def inputs(module, arrays, **how):
    made = []
    for name, array in arrays.items():
        tensor = module.InferInput(name, list(array.shape), DATATYPES[str(array.dtype)])
        tensor.set_data_from_numpy(array, **how)
        made.append(tensor)
    return made


def refused(call, *words):
    try:
        call()
    except InferenceServerException as error:
        text = str(error)
        assert all(word in text for word in words), f"{text!r} does not say {words}"
        return
    raise AssertionError(f"nothing was refused; wanted: {words}")


def describe(client, over_http):
    """The server, its models, and what they take."""
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "r1")
    assert not client.is_model_ready(MODEL, "r9") and not client.is_model_ready("books")
    as_json = {} if over_http else {"as_json": True}
    server = client.get_server_metadata(**as_json)
    assert server["name"] == "tidepool" and "model_repository" in server["extensions"], server
    index = client.get_model_repository_index(**as_json)
    index = index if over_http else index["models"]
    assert [(one["name"], one["version"], one["state"]) for one in index] == [(MODEL, "r1", "READY")], index
    model = client.get_model_metadata(MODEL, **as_json)
    assert model["platform"] == "tidepool" and model["versions"] == ["r1"], model
    known = {one["name"]: (one["datatype"], [int(size) for size in one["shape"]]) for one in model["inputs"]}
    assert known["item"] == ("INT64", [-1]) and known["genres_lengths"] == ("INT32", [-1]), known
    assert known["age"] == ("FP32", [1, 1]), known
    assert [one["name"] for one in model["outputs"]] == ["probability"], model
    # What failed to load is tried again; what is loaded stays.
    client.load_model(MODEL)
    refused(lambda: client.load_model("books"), "no release of model")
    refused(lambda: client.unload_model(MODEL), "tidepool release retire")
    refused(lambda: client.get_model_metadata("books"), "books")


def wrong(client, module, arrays):
    """Requests that are no rankings: each is refused in words, and the next one is answered."""
    def send(changed, **more):
        return lambda: client.infer(MODEL, inputs(module, changed), **more)

    refused(send({**arrays, "item": arrays["item"].astype(np.float32)}), '"item"', "FP32")
    refused(send({**arrays, "age": arrays["age"].reshape(1, 1, 1)}), '"age"', "shape")
    refused(send({name: array for name, array in arrays.items() if name != "item"}), '"item" is missing')
    refused(send({**arrays, "colour": arrays["item"]}), '"colour"')
    refused(send({**arrays, "genres_lengths": arrays["genres_lengths"] + 1}), '"genres"', "add up")
    refused(send({**arrays, "age": np.array([[np.nan]], dtype=np.float32)}), '"age"', "NaN")
    refused(send(arrays, sequence_id=7, sequence_start=True), "sequence")
    refused(send(arrays, priority=1), "priorit")
    refused(send(arrays, parameters={"colour": "red"}), "colour")
    refused(send(arrays, model_version="r9"), "r9")
    refused(send(arrays, outputs=[module.InferRequestedOutput("p")]), '"p"')
    shared = module.InferInput("item", [2, 1], "INT64")
    shared.set_shared_memory("region", 16)
    refused(lambda: client.infer(MODEL, [shared]), "shared memory is not served")


async def at_once(site, reference, cases):
    """Many at a time, by the asynchronous clients."""
    grpc_client = grpc_aio.InferenceServerClient(site["grpc"])
    http_client = http_aio.InferenceServerClient(site["http"])
    calls, wanted = [], []
    for user, items, genres in cases:
        arrays = tensors(user, items, genres)
        calls.append(grpc_client.infer(MODEL, inputs(grpc, arrays)))
        calls.append(http_client.infer(MODEL, inputs(http, arrays)))
        wanted += 2 * [reference.score(user, items, genres)]
    for result, scores in zip(await asyncio.gather(*calls), wanted):
        reference.check(result.as_numpy("probability"), scores, "at once")
    await grpc_client.close()
    await http_client.close()


def main():
    with open(sys.argv[1], encoding="utf-8") as file:
        site = json.load(file)
    reference = Reference(site)
    random = np.random.default_rng(7)
    users, items = reference.ids("user"), np.array(reference.ids("item") + [NOWHERE], dtype=np.uint64)
    genres, occupations = reference.ids("genre"), reference.ids("occupation")
    cases = []
    for count in (1, 2, 17, 100, 257):
        user = {
            "user": int(random.choice(users)),
            "occupation": int(random.choice(occupations)),
            "age": float(random.integers(10, 80)),
            "gender": float(random.integers(0, 2)),
        }
        of = [[int(genre) for genre in random.choice(genres, size=random.integers(0, 4))] for _ in range(count)]
        cases.append((user, [int(item) for item in random.choice(items, size=count)], of))

    over_grpc = grpc.InferenceServerClient(site["grpc"])
    over_http = http.InferenceServerClient(site["http"], concurrency=4)
    describe(over_grpc, over_http=False)
    describe(over_http, over_http=True)
    for at, (user, chosen, of) in enumerate(cases):
        arrays, wanted = tensors(user, chosen, of), reference.score(user, chosen, of)
        result = over_grpc.infer(
            MODEL, inputs(grpc, arrays), model_version="r1", request_id=f"triton-grpc-{at}", timeout=5_000_000,
            parameters={"routing_key": "u-7"},
        )
        reference.check(result.as_numpy("probability"), wanted, "gRPC")
        response = result.get_response()
        assert response.id == f"triton-grpc-{at}" and response.model_version == "r1", response
        assert response.parameters["table_versions"].string_param.count("@r1") == 4, response
        missing = response.parameters["missing_ids"].int64_param
        assert (missing > 0) == (NOWHERE in chosen), response

        for how in ({}, {"binary_data": True}, {"binary_data": False}):
            result = over_http.infer(MODEL, inputs(http, arrays, **how), request_id=f"triton-http-{at}")
            reference.check(result.as_numpy("probability"), wanted, f"HTTP {how}")
            assert result.get_response()["parameters"]["release"] == "r1"
        as_json = [http.InferRequestedOutput("probability", binary_data=False)]
        for algorithm in ("gzip", "deflate", None):
            result = over_http.infer(
                MODEL, inputs(http, arrays), outputs=as_json,
                request_compression_algorithm=algorithm, response_compression_algorithm=algorithm,
            )
            reference.check(result.as_numpy("probability"), wanted, f"HTTP, {algorithm}")
        later = over_http.async_infer(MODEL, inputs(http, arrays)).get_result()
        reference.check(later.as_numpy("probability"), wanted, "HTTP, later")

        count = min(3, len(chosen))
        for result in (
            over_grpc.infer(MODEL, inputs(grpc, arrays), parameters={"top_k": 3}),
            over_http.infer(MODEL, inputs(http, arrays), parameters={"top_k": 3}),
        ):
            indexes, scores = result.as_numpy("indexes"), result.as_numpy("scores")
            assert indexes.dtype == np.uint32 and len(indexes) == count, indexes
            reference.check(scores, wanted[indexes], "the best")
            assert np.all(np.diff(scores) <= 0) and scores[0] >= wanted.max() - 1e-5
    (user, chosen, of) = cases[1]
    for client, module in ((over_grpc, grpc), (over_http, http)):
        wrong(client, module, tensors(user, chosen, of))
        result = client.infer(MODEL, inputs(module, tensors(user, chosen, of)))
        reference.check(result.as_numpy("probability"), reference.score(user, chosen, of), "after what was wrong")
    asyncio.run(at_once(site, reference, cases * 4))
    over_grpc.close()
    over_http.close()
    print(json.dumps({"compared": reference.compared, "largest": reference.largest}))


if __name__ == "__main__":
    main()
