"""What the page's server is sent: each bad picture, recipe, form or field is one clear 4xx, never a 5xx."""

from __future__ import annotations

import http.client

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

pytest.importorskip("starlette", reason="the page needs the extra 'ui'")
pytest.importorskip("uvicorn", reason="the page needs the extra 'ui'")

from fastdiff.images import png_bytes
from fastdiff.web.limits import Limits
from fastdiff.web.operations import Inputs
from fastdiff.web.recipes import restored
from fastdiff.web.table import OPERATIONS, offered
from web_client import LIMITS, Client, Watched, encoded, photograph, pixels, serving

pytest_plugins = ["web_fixtures"]

MODEL = Watched()

# Uploads


@pytest.mark.parametrize(
    "image",
    [Image.new("L", (20, 30), 90), Image.new("P", (20, 30)), Image.new("LA", (20, 30)), Image.new("RGBA", (20, 30)),
     Image.new("1", (20, 30)), Image.fromarray(np.full((30, 20), 40000, np.uint16)), Image.new("CMYK", (20, 30))],
    ids=lambda image: image.mode,
)  # fmt: skip
def test_pictures_of_every_mode_are_taken(client: Client, visit: str, image: Image.Image) -> None:
    data = encoded(image, "JPEG" if image.mode == "CMYK" else "PNG")
    arrived = client.upload(visit, data)
    assert (arrived["width"], arrived["height"]) == (20, 30) and arrived["recipe"] is None


def test_an_upload_stands_upright_and_fits(client: Client, visit: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    arrived = client.upload(visit, encoded(photograph(200, 100), "JPEG", exif=exif.tobytes()), side=64)
    assert (arrived["width"], arrived["height"]) == (32, 64)
    small = encoded(photograph())
    same = client.upload(visit, small, side=64)
    assert np.array_equal(pixels(client.picture(visit, same["id"])), pixels(small))


def damaged() -> dict[str, bytes]:
    png = encoded(photograph(64, 64))
    header = bytearray(png)
    header[16:24] = (2**31 - 1).to_bytes(4, "big") * 2
    return {
        "nothing": b"",
        "text": b"not a picture",
        "script": b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(1)'/>",
        "truncated": png[: len(png) // 2],
        "only a signature": png[:8],
        "giant header": bytes(header),
        "gif": encoded(Image.new("P", (32, 32)), "GIF"),
        "tiff": encoded(Image.new("RGB", (32, 32)), "TIFF"),
        "too many pixels": encoded(Image.new("1", (1024, 1024)), "PNG"),
        "a pixel": encoded(Image.new("RGB", (1, 1))),
        "a line": encoded(Image.new("RGB", (2000, 8))),
        "truncated jpeg": encoded(photograph(64, 64), "JPEG")[:200],
    }


@pytest.mark.parametrize("kind", damaged())
def test_what_is_no_acceptable_picture_is_refused(client: Client, visit: str, kind: str) -> None:
    answer = client.ask("POST", f"{visit}/pictures", damaged()[kind], Content_Type="image/png")
    assert answer.status == 400 and "BytesIO" not in answer.error and "/" not in answer.error.split("(")[0]


@pytest.mark.parametrize("side", ["", "0", "-1", "1e3", "99999", "9" * 5000, "nan", "%00"])
def test_a_side_that_cannot_be(client: Client, visit: str, side: str) -> None:
    answer = client.ask("POST", f"{visit}/pictures?side={side}", encoded(photograph()))
    assert answer.status in (201, 400) if side == "" else answer.status == 400


def test_uploads_that_are_too_long(client: Client, visit: str) -> None:
    big = b"\x89PNG" + bytes(LIMITS.upload_bytes)
    answer = client.ask("POST", f"{visit}/pictures", big)
    assert answer.status == 413 and "MiB" in answer.error
    chunks = client.ask("POST", f"{visit}/pictures", iter([big[:1000]] * 400))
    assert chunks.status == 413
    assert client.ask("POST", f"{visit}/jobs", b"[" * 70000, Content_Type="application/json").status == 413


def test_an_upload_that_never_ends_is_given_up() -> None:
    with serving(limits=Limits(upload_seconds=0.2)) as (client, _, _):
        visit = client.visit()
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        connection.putrequest("POST", f"{visit}/pictures")
        connection.putheader("Content-Length", "1000")
        connection.endheaders(b"\x89PNG")
        assert connection.getresponse().status == 408
        connection.close()


def recipe_png(recipe: object) -> bytes:
    return png_bytes(np.asarray(photograph()), recipe=recipe)  # type: ignore[arg-type]


def test_a_recipe_is_checked_as_if_it_were_typed(client: Client, visit: str) -> None:
    arguments = {
        "prompts": ["cat"],
        "size": [32, 16],
        "steps": 10**9,
        "sampler": "<script>",
        "seed": -1,
        "guidance": 3,
    }
    arrived = client.upload(
        visit, recipe_png({"command": "generate", "arguments": arguments, "checkpoint": "x"})
    )
    assert arrived["recipe"]["fields"] == {"prompts": ["cat"], "width": 32, "height": 16, "guidance": 3}
    assert len(arrived["recipe"]["notes"]) == 4 and "another checkpoint" in arrived["recipe"]["notes"][-1]


def test_what_the_page_has_no_field_for_is_said(client: Client, visit: str) -> None:
    arguments = {"prompts": ["cat"], "window": 16, "overlap": 0.5, "batch": 3}
    arrived = client.upload(visit, recipe_png({"command": "generate", "arguments": arguments}))
    assert [note for note in arrived["recipe"]["notes"] if "no field" in note] == [
        "window was 16, which this page has no field for"
    ]


@pytest.mark.parametrize(
    "recipe",
    [
        {},
        {"command": "rm -rf"},
        {"command": ["generate"]},
        {"arguments": 7},
        {"command": "generate", "arguments": None},
    ],
)
def test_a_recipe_of_something_else_is_told_so(client: Client, visit: str, recipe: object) -> None:
    arrived = client.upload(visit, recipe_png(recipe))
    assert arrived["recipe"] is None and "recipe" in arrived["problem"]


LEAVES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12)
JSON = st.recursive(
    LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=6,
)
ARGUMENTS = st.dictionaries(st.sampled_from(["size", "seed", "prompts", "options", "labels", "steps"]), JSON)


@settings(max_examples=100, deadline=None)
@given(
    st.fixed_dictionaries(
        {"command": JSON | st.just("generate"), "arguments": JSON | ARGUMENTS},
        optional={"inputs": JSON, "checkpoint": JSON},
    )
)
def test_any_recipe_is_read_or_refused(recipe: dict) -> None:
    try:
        found = restored(recipe, MODEL)
    except ValueError:
        return
    assert found["operation"] in OPERATIONS


def test_names_that_are_no_text_stay_out_of_a_recipe(client: Client, visit: str) -> None:
    """A lone surrogate cannot be sent: the answer would be a 500."""
    inputs = {"\ud800": "a", "mask": "\ud800", "nested": [1], "picture": "abc"}
    recipe = {"command": "generate", "arguments": {}, "inputs": inputs}
    arrived = client.upload(visit, png_bytes(np.zeros((32, 32, 3), np.uint8), recipe=recipe))
    assert arrived["recipe"]["inputs"] == {"picture": "abc"}


def test_what_is_added_around_a_picture_counts_as_pixels() -> None:
    """16 x 16 pixels and 512 on each side, 16 times, are 17 million."""
    given = {"left": 512, "top": 512, "right": 512, "bottom": 512, "count": 16}
    with pytest.raises(ValueError, match=r"17\.3 million pixels"):
        OPERATIONS["outpaint"].job(MODEL, given, Inputs(torch.zeros(3, 16, 16)), most=2**22)


# Forms


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b"7", b'"x"', b"null", b"{}", b'{"operation": null}', b'{"operation": "nothing"}',
     b'{"operation": ["generate"]}', b'{"operation": {"a": 1}}', b'{"operation": "generate", "fields": 7}',
     b'{"operation": "generate", "fields": null}', b'{"operation": "generate", "fields": [1]}', b"\xff\xfe",
     b"[" * 9000,
     b'{"operation": "generate", "fields": {"steps": ' + b"9" * 6000 + b"}}", b'{"operation": "\xed\xa0\x80"}',
     b'{"operation": "generate", "picture": "nothing"}', b'{"operation": "generate", "mask": "nothing"}'],
    ids=lambda body: repr(body[:40]),
)  # fmt: skip
def test_a_form_that_is_none(client: Client, visit: str, body: bytes) -> None:
    answer = client.ask("POST", f"{visit}/jobs", body, Content_Type="application/json")
    assert answer.status in (400, 404) and answer.error


def test_a_form_of_another_type(client: Client, visit: str) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x", ""):
        assert (
            client.ask("POST", f"{visit}/jobs", b'{"operation": "generate"}', Content_Type=kind).status == 415
        )


BAD = {
    "steps": [0, -1, 251, 1.5, "7", True, [], {}, 10**400, None],
    "guidance": [-1, 31, float("nan"), float("inf"), "2", True, [1]],
    "sampler": ["", "eular", None, 7, ["ddim"], "../ddim"],
    "spacing": ["nowhere", 7],
    "options": ["eta", "eta=x", "nothing=1", 7, "a" * 2000, "eta=0.5\n", "\ud800"],
    "seed": [-1, 2**53, 1.5, "0", None],
    "count": [0, 17, "1"],
    "width": [0, 1028, 17, "16", None],
    "prompts": [[], ["dog"], "cat", [7], [None], {"a": 1}, ["cat"] * 40, ["cat\x00"]],
    "tile": [1, "true"],
    "nothing": [1],
    "\ud800": [1],
}


@pytest.mark.parametrize("name", BAD, ids=ascii)
def test_each_bad_value_is_one_clear_error(client: Client, visit: str, name: str) -> None:
    for value in BAD[name]:
        answer = client.ask("POST", f"{visit}/jobs", {"operation": "generate", "fields": {name: value}})
        assert answer.status == 400, (name, value, answer.body)
        assert answer.error.isprintable() and len(answer.error) < 600


NAMES = sorted({field.name for one in OPERATIONS.values() for field in one.fields(MODEL)})


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(operation=st.sampled_from([one.name for one in offered()]), fields=st.dictionaries(st.sampled_from(NAMES), JSON),
       picture=JSON | st.just("known"), mask=JSON | st.just("known"))  # fmt: skip
def test_no_form_makes_the_server_fail(
    client: Client, operation: str, fields: dict, picture: object, mask: object
) -> None:
    visit = client.visit()
    known = client.upload(visit, encoded(photograph()))["id"]
    body = {"operation": operation, "fields": fields}
    body |= {k: known if v == "known" else v for k, v in (("picture", picture), ("mask", mask))}
    answer = client.ask("POST", f"{visit}/jobs", body)
    assert answer.status == 202 or answer.error
    client.ask("DELETE", visit)


class Told(Watched):
    """A model that takes any text."""

    def __init__(self) -> None:
        super().__init__()
        self.labels = ()

    def check(self, prompts: object) -> None:
        """Any will do."""

    def conditioning(self, prompts: list) -> dict:
        return super().conditioning([None] * len(prompts))


def test_a_model_of_texts_has_prompts_instead_of_labels() -> None:
    source = Told()
    assert {"prompts", "negative"} <= {
        field.name for field in OPERATIONS["generate"].fields(source) if field.kind == "text"
    }
    prepared = OPERATIONS["generate"].job(source, {"prompts": "a red cat", "steps": 2}, Inputs(), most=10**6)
    recipe = prepared.job.run().recipe_of(0)
    assert restored(recipe, source)["fields"]["prompts"] == "a red cat"
    with pytest.raises(ValueError, match="say what to make"):
        OPERATIONS["generate"].job(source, {}, Inputs(), most=10**6)


def test_what_is_not_installed_is_not_offered(
    client: Client, visit: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit = OPERATIONS["edit"]
    monkeypatch.setitem(OPERATIONS, "edit", type(edit)(**{**vars(edit), "app": "no_such_application"}))
    names = [operation["name"] for operation in client.ask("GET", "/api/about").json["operations"]]
    assert "generate" in names and "edit" not in names
    assert "operation must be one of" in client.ask("POST", f"{visit}/jobs", {"operation": "edit"}).error
