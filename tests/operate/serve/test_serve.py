"""A server and OpenAI's own client: answers are the engine's, alone or in a crowd; who misbehaves disturbs nobody."""

import base64
import io
import json
import random
import re
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor

import openai
import psutil
import pytest
from live_server import before_each_pass, running
from PIL import Image

from gossamer.data.scenes import scene
from gossamer.engine.decode import Request, decode
from gossamer.engine.sampling import Sampling
from gossamer.engine.stepping import Stepper
from gossamer.evaluate.prompts import prompt_inputs
from gossamer.operate.cache import KeyValues
from gossamer.operate.writer import open_writer

PROMPT = "Once upon a time"


def alone(opened, prompt: str, images=(), raw: bool = True, tokens: int = 12, **sampling) -> str:
    request = Request(prompt_inputs(opened, prompt, images, raw), Sampling(**sampling), tokens)
    return "".join(event.text for event in decode(opened.model, [request], opened.tokenizer))


def data_url(image: Image.Image, kind: str = "png") -> str:
    file = io.BytesIO()
    image.save(file, kind)
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode()}"


def asking(text: str, *urls: str) -> list[dict]:
    images = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*images, {"type": "text", "text": text}]}]


def until(condition) -> None:
    for _ in range(3000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("it did not come about within 30 seconds")


@pytest.mark.parametrize("name", ["tiny-lm", "tiny-vlm"])
def test_the_native_engine_serves_a_crowd_as_each_alone(serve, name: str) -> None:
    writer = open_writer(name, "native")
    server = serve(writer, batch=3)
    images = [scene("test", number).image for number in range(3)] if name == "tiny-vlm" else []

    def ask(seed: int) -> str:
        text = asking("How many shapes are there?", *[data_url(Image.fromarray(each)) for each in images[seed:][:1]])
        answer = server.client.chat.completions.create(
            model="tiny", messages=text, temperature=0.8, seed=seed, max_tokens=8 + seed
        ) if images else server.client.completions.create(
            model="tiny", prompt=PROMPT + " a" * seed, temperature=0.8, seed=seed, max_tokens=8 + seed
        )  # fmt: skip
        return answer.choices[0].message.content if images else answer.choices[0].text

    one_by_one = [ask(seed) for seed in range(3)]
    with ThreadPoolExecutor(3) as crowd:
        assert list(crowd.map(ask, range(3))) == one_by_one
    (card,) = server.client.models.list().data
    assert card.gossamer["engine"]["name"] == "native"


def test_a_crowd_whose_past_is_kept_in_part(serve) -> None:
    """Every answer is as the keeper gives it alone, whatever came before."""
    keeper = KeyValues.parse("streaming:budget=24,block=4,bits=8,residual=8")
    writer = open_writer("tiny-lm", keeper=keeper)
    opened = writer.opened
    server = serve(writer, batch=3)
    prompts = [PROMPT + " there was a king" * (3 + number) for number in range(4)]

    def alone(prompt: str) -> str:
        request = Request(prompt_inputs(opened, prompt, (), True), Sampling(), 24)
        events = decode(opened.model, [request], opened.tokenizer, lambda model: Stepper(model, keeper))
        return "".join(event.text for event in events)

    def ask(prompt: str) -> str:
        answer = server.client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=24)
        return answer.choices[0].text

    expected = [alone(prompt) for prompt in prompts]
    with ThreadPoolExecutor(4) as crowd:
        assert list(crowd.map(ask, prompts)) == list(crowd.map(ask, prompts)) == expected
    (card,) = server.client.models.list().data
    assert card.gossamer["kv"]["budget"] == 24
    assert "less than all" in card.gossamer["prefix_cache"]["off"]


def test_text_is_continued_as_the_engine_does(serve, lm) -> None:
    client = serve(lm).client
    greedy = client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=12)
    assert greedy.choices[0].text == alone(lm, PROMPT)
    assert greedy.choices[0].finish_reason == "length"
    assert greedy.usage.completion_tokens == 12
    assert greedy.usage.prompt_tokens == prompt_inputs(lm, PROMPT, raw=True)["input_ids"].shape[1]
    drawn = {"temperature": 0.9, "top_p": 0.95, "frequency_penalty": 0.5, "seed": 3}
    pieces = list(
        client.completions.create(
            model="tiny", prompt=[PROMPT], max_tokens=12, stream=True, stream_options={"include_usage": True}, **drawn
        )
    )
    assert "".join(piece.choices[0].text for piece in pieces[:-1]) == alone(lm, PROMPT, **drawn) != alone(lm, PROMPT)
    assert [piece.choices[0].finish_reason for piece in pieces[:-1]] == [None] * (len(pieces) - 2) + ["length"]
    assert pieces[-1].choices == []
    stages = pieces[-1].usage.gossamer
    assert 0 < stages["queue_ms"] + stages["read_ms"] <= stages["time_to_first_token_ms"]
    assert stages["time_per_token_ms"] > 0
    layers, read = lm.config.num_hidden_layers, pieces[-1].usage.prompt_tokens + 10
    heads, width = lm.config.num_key_value_heads, lm.config.head_dim
    assert stages["cache_bytes"] == 2 * 4 * layers * heads * width * read  # the last token has not been read
    unseeded = {
        client.completions.create(model="tiny", prompt=PROMPT, temperature=1.5, max_tokens=12).choices[0].text
        for _ in range(4)
    }
    assert len(unseeded) > 1


def test_stop_strings_end_an_answer(serve, lm) -> None:
    text = alone(lm, PROMPT, tokens=24)
    stop = text[10:14]
    answer = serve(lm).client.completions.create(
        model="tiny", prompt=PROMPT, temperature=0, max_tokens=24, stop=["zzz", stop]
    )
    assert answer.choices[0].text == text[: text.index(stop)]
    assert answer.choices[0].finish_reason == "stop"


def test_images_are_seen(serve, vlm) -> None:
    images = [Image.fromarray(scene("test", index).image) for index in range(12)]
    question = "what shape is the largest object?"
    expected = [alone(vlm, question, [image], raw=False, tokens=2) for image in images]
    client = serve(vlm).client
    answers = []
    for image in images:
        told = client.chat.completions.create(
            model="tiny", messages=asking(question, data_url(image)), temperature=0, max_completion_tokens=2
        )
        answers.append(told.choices[0].message.content)
        assert told.usage.gossamer["image_encode_ms"] > 0
    assert answers == expected
    assert len(set(answers)) > 1
    pieces = client.chat.completions.create(
        model="tiny", messages=asking(question, data_url(images[0])), temperature=0, max_tokens=2, stream=True
    )
    told = [piece.choices[0].delta for piece in pieces]
    assert told[0].role == "assistant"
    assert "".join(delta.content or "" for delta in told) == expected[0]


def test_a_crowd_gets_what_each_would_get_alone(serve, lm) -> None:
    prompts = [PROMPT, "The dog", "Lily and Ben went to the park. They", "A"]
    settings = [
        {"prompt": prompts[seed % 4], "seed": seed, "temperature": 0.8, "tokens": 8 + 3 * (seed % 5)}
        for seed in range(16)
    ]
    expected = [alone(lm, **setting) for setting in settings]
    assert len(set(expected)) > 12
    served = serve(lm, batch=5, queue=16)

    def ask(setting: dict) -> str:
        asked = {"max_tokens" if key == "tokens" else key: value for key, value in setting.items()}
        if setting["seed"] % 2:
            return served.client.completions.create(model="tiny", **asked).choices[0].text
        pieces = served.client.completions.create(model="tiny", stream=True, **asked)
        return "".join(piece.choices[0].text for piece in pieces)

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, settings)) == expected
    until(lambda: served.service.open == 0)


def test_a_crowd_with_and_without_images(serve, vlm) -> None:
    pictures = [Image.fromarray(scene("test", index).image) for index in range(4)]
    questions = ["what shape is the largest object?", "how many objects are there?", "is there a red cross?"]
    asked = [(question, picture) for question in questions for picture in [*pictures, None]]
    expected = [alone(vlm, text, [image] if image else (), raw=False, tokens=6) for text, image in asked]
    client = serve(vlm, batch=6).client

    def ask(text: str, image: Image.Image | None) -> str:
        messages = asking(text, *([data_url(image)] if image else []))
        answer = client.chat.completions.create(model="tiny", messages=messages, temperature=0, max_tokens=6)
        return answer.choices[0].message.content

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, *zip(*asked, strict=True))) == expected


def test_too_many_are_told_to_come_back(serve, lm, gate) -> None:
    served = serve(lm, batch=1, queue=1)
    gate.close()
    with ThreadPoolExecutor(2) as pool:
        asked = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 12}
        waiting = [pool.submit(served.client.completions.create, **asked) for _ in range(2)]
        until(lambda: served.service.open == 2)
        with pytest.raises(openai.RateLimitError) as refused:
            served.client.completions.create(**asked)
        assert refused.value.response.headers["retry-after"] == "1"
        gate.open()
        assert [each.result().choices[0].text for each in waiting] == [alone(lm, PROMPT)] * 2
    assert served.client.completions.create(**asked).choices[0].text == alone(lm, PROMPT)


def test_who_leaves_frees_a_place(serve, lm, gate) -> None:
    served = serve(lm, batch=1, queue=1)
    stream = served.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=200, stream=True)
    next(iter(stream))
    gate.close()
    impatient = served.client.with_options(timeout=0.5)
    with pytest.raises(openai.APITimeoutError):  # waits for the other, and gives up
        impatient.completions.create(model="tiny", prompt=PROMPT)
    until(lambda: served.service.open == 1)
    assert served.service.worker.waiting == 0
    stream.close()
    until(lambda: served.service.open == 0)
    gate.open()
    until(lambda: served.service.worker.running == 0)
    assert 'gossamer_requests_total{status="499"} 2.0' in served.ask("GET", "/metrics")[2]
    assert served.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=1).usage.completion_tokens == 1


LONG = " ".join([PROMPT, *(f"there were {number} kings" for number in range(20))])


def test_others_write_on_between_the_pieces_of_a_long_prompt(serve, lm, gate, monkeypatch) -> None:
    monkeypatch.setattr("gossamer.operate.serve.worker.PIECE_TOKENS", 16)
    length = prompt_inputs(lm, LONG, raw=True)["input_ids"].shape[1]
    served = serve(lm, batch=3, prefix_bytes=10**8)
    expected = [alone(lm, PROMPT, tokens=60), alone(lm, LONG), alone(lm, "The dog")]
    passes: list[tuple[int, int]] = []
    with before_each_pass(lm, lambda module, args, given: passes.append(tuple(given["input_ids"].shape))):
        asked = {"model": "tiny", "temperature": 0}
        stream = served.client.completions.create(**asked, prompt=PROMPT, max_tokens=60, stream=True)
        told = [next(iter(stream)).choices[0].text]
        gate.close()
        with ThreadPoolExecutor(2) as pool:
            long = pool.submit(served.client.completions.create, **asked, prompt=LONG, max_tokens=12)
            until(lambda: served.service.worker.waiting == 1)
            short = pool.submit(served.client.completions.create, **asked, prompt="The dog", max_tokens=12)
            until(lambda: served.service.worker.waiting == 2)
            gate.open()
            found = [each.result().choices[0].text for each in (long, short)]
        assert ["".join(told + [piece.choices[0].text for piece in stream]), *found] == expected
        pieces = [at for at, (_, tokens) in enumerate(passes) if tokens == 16]
        assert len(pieces) == length // 16
        assert all(passes[at + 1] == (1, 1) for at in pieces[:-1]), "one step of the other"
        assert max(tokens for _, tokens in passes) == 16
        passes.clear()
        again = served.client.completions.create(**asked, prompt=f"{LONG} who had a dog", max_tokens=2)
        assert again.usage.prompt_tokens_details.cached_tokens >= length - 1
        assert max(tokens for _, tokens in passes) <= 16


@pytest.mark.parametrize("end", ["leaves", "fails"])
def test_a_long_prompt_that_ends_half_read_disturbs_nobody(serve, lm, gate, monkeypatch, end: str) -> None:
    monkeypatch.setattr("gossamer.operate.serve.worker.PIECE_TOKENS", 16)
    served = serve(lm, batch=2)
    third = threading.Event()

    def look(module, args, given) -> None:
        look.pieces += given["input_ids"].shape[1] == 16
        if look.pieces == 3 and given["input_ids"].shape[1] == 16:
            third.set()
            gate.close()
            gate.wait()
            if end == "fails":
                raise RuntimeError("broken pass")

    look.pieces = 0
    asked = {"model": "tiny", "temperature": 0}
    with before_each_pass(lm, look), ThreadPoolExecutor(1) as pool:
        stream = served.client.completions.create(**asked, prompt=PROMPT, max_tokens=60, stream=True)
        told = [next(iter(stream)).choices[0].text]
        impatient = served.client.with_options(timeout=2 if end == "leaves" else 60)
        long = pool.submit(impatient.completions.create, **asked, prompt=LONG, max_tokens=12)
        assert third.wait(60)
        if end == "leaves":
            with pytest.raises(openai.APITimeoutError):
                long.result()
            until(lambda: served.service.open == 1)
        gate.open()
        if end == "fails":
            with pytest.raises(openai.InternalServerError, match="broken pass"):
                long.result()
        assert "".join(told + [piece.choices[0].text for piece in stream]) == alone(lm, PROMPT, tokens=60)
    assert look.pieces == 3
    until(lambda: served.service.worker.running == 0)
    assert served.client.completions.create(**asked, prompt="The dog", max_tokens=12).choices[0].text == alone(
        lm, "The dog"
    )


def test_a_stop_lets_the_running_end_and_turns_others_away(serve, lm, gate) -> None:
    served = serve(lm)
    stream = served.client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=12, stream=True)
    told = [next(iter(stream))]
    gate.close()
    assert served.ask("GET", "/health")[0] == 200
    served.server.handle_exit(15, None)
    with pytest.raises(openai.InternalServerError) as refused:
        served.client.completions.create(model="tiny", prompt=PROMPT)
    assert refused.value.status_code == 503
    assert served.ask("GET", "/health")[0] == 503
    gate.open()
    told += list(stream)
    assert "".join(piece.choices[0].text for piece in told) == alone(lm, PROMPT)
    served.thread.join(60)
    assert not served.thread.is_alive()
    assert not served.service.worker.is_alive()


def png_of(width: int, height: int) -> bytes:
    """A small file that says it holds a large image."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def inline(data: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(data).decode()}"


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"messages": asking("x", inline(png_of(50000, 50000)))}, "too many pixels"),
        ({"messages": asking("x", inline(b"no image"))}, r"messages\.0\.content\.0.*not an image"),
        ({"messages": asking("x", inline(png_of(20, 20)))}, "damaged"),
        ({"messages": asking("x", "data:image/png;base64,%%%")}, "not base64"),
        ({"messages": asking("x", "https://example.org/a.png")}, "nothing is fetched"),
        ({"messages": asking("x", "file:///etc/passwd")}, "nothing is fetched"),
        ({"messages": asking("x", *[inline(png_of(2, 2))] * 9)}, "too many images|damaged"),
        ({"messages": [*asking("x"), *asking("y")]}, "no chat template"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, r"messages\.0\.role"),
        ({"messages": [{"role": "user", "content": [{"type": "sound"}]}]}, r"messages\.0\.content"),
        ({"messages": asking("word " * 400)}, "context holds 256"),
        ({"messages": asking("x"), "logit_bias": {"3": 1}}, "logit_bias is no field"),
        ({"messages": asking("x"), "mirostat": 2}, "mirostat is no field"),
        ({"messages": asking("x"), "logprobs": True}, "logprobs"),
        ({"messages": asking("x"), "n": 2}, "n: "),
        ({"messages": asking("x"), "temperature": 3}, "temperature"),
        ({"messages": asking("x"), "temperature": "hot"}, "temperature"),
        ({"messages": asking("x"), "max_tokens": 0}, "max_tokens"),
        ({"messages": asking("x"), "stop": ["a"] * 5}, "stop"),
        ({"messages": asking("x"), "seed": 2**70}, "seed"),
        ({"messages": asking("x"), "response_format": {"type": "json_object"}}, "response_format"),
        ([], "object"),
        (b"\xff\xfe{}", "JSON"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\xc3("}]}', "JSON|UTF-8|unicode"),
        (b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud800"}]}', "JSON|surrogate"),
        (b'{"temperature": NaN}', "temperature|model"),
        (b"[" * 100_000, "JSON|recursion"),
    ],
)
def test_what_is_at_fault_is_named(vlm_served, body, said: str) -> None:
    body = {"model": "tiny", **body} if isinstance(body, dict) else body
    status, _, text = vlm_served.ask("POST", "/v1/chat/completions", body)
    error = json.loads(text)["error"]
    assert (status, error["type"]) == (400, "invalid_request_error"), text
    assert re.search(said, error["message"]), error["message"]
    assert "\n" not in error["message"]
    assert len(error["message"]) < 400


@pytest.fixture(scope="module")
def vlm_served(vlm):
    with running(vlm, "tiny") as served:
        yield served


def test_doors_that_are_shut(serve, lm) -> None:
    served = serve(lm, keys=("one", "two"), body_bytes=2000, hosts=("127.0.0.1",))
    asked = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "max_tokens": 2}
    for key in ("none", "On", "ones", "clé"):
        status, _, text = served.ask("POST", "/v1/completions", asked, Authorization=f"Bearer {key}".encode())
        assert (status, json.loads(text)["error"]["code"]) == (401, "invalid_api_key")
    assert served.ask("GET", "/v1/models")[0] == 401
    client = served.client_with("two")
    assert client.completions.create(**asked).usage.completion_tokens == 2
    assert [model.id for model in client.models.list()] == ["tiny"]
    with pytest.raises(openai.APIStatusError) as refused:
        client.completions.create(**{**asked, "prompt": "x" * 5000})
    assert refused.value.status_code == 413
    with pytest.raises(openai.NotFoundError, match="'other' is not served here"):
        client.completions.create(**{**asked, "model": "other"})
    key = {"Authorization": "Bearer one"}
    assert served.ask("POST", "/v1/completions", asked, **key, Content_Type="text/plain")[0] == 415
    assert served.ask("GET", "/v1/models", **key, Host="elsewhere.example")[0] == 400
    assert served.ask("GET", "/v1/nothing", **key)[0] == 404
    assert served.ask("GET", "/v1/completions", **key)[0] == 405


def test_a_hundred_malformed_bodies_disturb_nobody(serve, lm) -> None:
    served = serve(lm)
    chance = random.Random(0)
    whole = json.dumps({"model": "tiny", "prompt": PROMPT, "max_tokens": 3, "stop": ["a", "b"]}).encode()
    stream = served.client.completions.create(model="tiny", prompt=PROMPT, temperature=0, max_tokens=40, stream=True)
    told: list[str] = []
    reading = threading.Thread(target=lambda: told.extend(piece.choices[0].text for piece in stream))
    reading.start()
    for number in range(100):
        place = chance.randrange(1, len(whole) - 1)
        broken = whole[:place]  # cut off, or a byte in it that is no UTF-8
        broken += bytes([chance.randrange(128, 256)]) + whole[place:] if number % 2 else b""
        status, _, text = served.ask("POST", "/v1/completions", broken)
        assert (status, json.loads(text)["error"]["type"]) == (400, "invalid_request_error"), broken
    reading.join(60)
    assert "".join(told) == alone(lm, PROMPT, tokens=40)


def test_a_failure_of_the_model_is_no_end(serve, lm, gate) -> None:
    served = serve(lm, batch=4)
    poison = prompt_inputs(lm, "zebra", raw=True)["input_ids"][0, -1]
    told = {}

    def fail(module, args, given) -> None:
        if (given["input_ids"] == poison).any():
            raise RuntimeError("broken pass")

    def ask(prompt: str) -> None:
        try:
            answer = served.client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=12)
            told[prompt] = answer.choices[0].text
        except openai.InternalServerError as error:
            told[prompt] = error.body["message"]

    prompts = [PROMPT, "zebra", "The dog"]
    with before_each_pass(lm, fail):
        gate.close()
        threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in prompts]
        threads[0].start()
        until(lambda: served.service.worker.running == 1)
        for thread in threads[1:]:
            thread.start()
        until(lambda: served.service.worker.waiting == 2)
        gate.open()
        for thread in threads:
            thread.join(60)
    assert told == {PROMPT: alone(lm, PROMPT), "zebra": "RuntimeError: broken pass", "The dog": alone(lm, "The dog")}


def test_metrics_count_what_happened(serve, lm) -> None:
    served = serve(lm)
    for _ in range(3):
        served.client.completions.create(model="tiny", prompt=PROMPT, max_tokens=4, temperature=0)
    served.ask("POST", "/v1/completions", b"{")
    status, headers, text = served.ask("GET", "/metrics")
    assert status == 200
    assert headers["content-type"].startswith("text/plain")
    found = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    assert float(found['gossamer_requests_total{status="200"}']) == 3
    assert float(found['gossamer_requests_total{status="400"}']) == 1
    assert float(found["gossamer_generation_tokens_total"]) == 12
    assert float(found["gossamer_time_to_first_token_seconds_count"]) == 3
    assert float(found["gossamer_requests_running"]) == 0
    until(lambda: "gossamer_cache_bytes 0.0" in served.ask("GET", "/metrics")[2])


@pytest.mark.slow
def test_sixty_four_clients_for_a_minute(serve, lm) -> None:
    served = serve(lm, batch=32, queue=24)  # 56 places for 64: some are told to come back
    end = time.monotonic() + 60
    own = psutil.Process()
    answered, refused, sizes = [0] * 64, [0] * 64, []

    def ask(number: int) -> None:
        client, chance = served.client_with("none"), random.Random(number)
        while time.monotonic() < end:
            asked = {"prompt": PROMPT * chance.randint(1, 8), "max_tokens": chance.randint(1, 60)}
            try:
                for _ in client.completions.create(model="tiny", stream=True, **asked):
                    pass
                answered[number] += 1
            except openai.RateLimitError as error:
                refused[number] += 1
                time.sleep(float(error.response.headers["retry-after"]))

    with ThreadPoolExecutor(64) as pool:
        asking = [pool.submit(ask, number) for number in range(64)]
        time.sleep(20)  # until all paths have been warmed up
        while time.monotonic() < end:
            sizes.append(own.memory_info().rss)
            time.sleep(0.5)
        for each in asking:
            each.result()
    until(lambda: served.service.open == 0)
    assert all(answered), answered
    assert sum(refused) > 0
    early, late = sorted(sizes[:20])[10], sorted(sizes[-20:])[10]
    assert late < 1.05 * early, (early, late)
