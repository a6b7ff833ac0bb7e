"""The page's server: what it does, whom it answers, what bounds it (test_web_inputs.py: bad uploads and forms)."""

from __future__ import annotations

import http.client
import io
import json
import re
import time
from importlib import resources

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="the page needs the extra 'ui'")
pytest.importorskip("uvicorn", reason="the page needs the extra 'ui'")

from fastdiff.apps import generate
from fastdiff.images import read_recipe, to_pictures
from fastdiff.web.limits import Limits
from fastdiff.web.serve import Site
from fastdiff.web.table import OPERATIONS
from web_client import LIMITS, Client, Watched, encoded, photograph, pixels, serving

pytest_plugins = ["web_fixtures"]

# The page and its parts


def test_the_page_and_everything_it_names_is_served(client: Client) -> None:
    page = client.ask("GET", "/")
    assert page.status == 200 and page.headers["content-type"].startswith("text/html")
    names = re.findall(r'(?:src|href)="(/static/[^"]+)"', page.body.decode())
    scripts = [name for name in names if name.endswith(".js")]
    assert scripts
    for script in scripts:
        found = re.findall(r'from "\./([^"]+)"', client.ask("GET", script).body.decode())
        names += [f"/static/{name}" for name in found]
    for name in names:
        assert client.ask("GET", name).status == 200, name


def test_nothing_comes_from_elsewhere() -> None:
    for item in (resources.files("fastdiff.web") / "static").iterdir():
        text = item.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import|\binnerHTML\b|\beval\(", text), item.name


def test_every_answer_carries_the_headers_of_safety(client: Client) -> None:
    for answer in (client.ask("GET", "/"), client.ask("GET", "/api/about"), client.ask("GET", "/nowhere")):
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["x-frame-options"] == "DENY"
        assert answer.headers["cross-origin-resource-policy"] == "same-origin"
        assert answer.headers["referrer-policy"] == "no-referrer"
        assert "server" not in answer.headers


@pytest.mark.parametrize(
    "path",
    ["/static/../app.py", "/static/%2e%2e%2fapp.py", "/static/..%5capp.py", "/static//etc/passwd", "/app.py",
     "/static/", "/static/index.html/..", "/api/visits/../about", "/api/visits/x/pictures/..%2f..%2fapp.py.png"],
)  # fmt: skip
def test_no_file_is_served_by_its_path(client: Client, path: str) -> None:
    answer = client.ask("GET", path)
    assert answer.status == 404 and answer.error


def test_addresses_and_methods_that_there_are_not(client: Client, visit: str) -> None:
    assert client.ask("GET", "/api/visits/unknown").status == 404
    assert client.ask("GET", f"{visit}/pictures/unknown.png").status == 404
    assert client.ask("DELETE", f"{visit}/jobs/unknown").status == 404
    assert client.ask("POST", "/", b"x").status == 405
    assert client.ask("PUT", f"{visit}/jobs").status == 405
    for answer in (client.ask("GET", "/api/visits/unknown"), client.ask("PATCH", "/api/about")):
        assert answer.error


# Whose requests are answered


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.1", "", "[", "a b"]
)
def test_other_names_of_this_server_are_refused(client: Client, host: str) -> None:
    assert client.ask("GET", "/api/about", Host=host).status in (400, 421)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "localhost:9000", "[::1]:8000"])
def test_its_own_names_are_answered(client: Client, host: str) -> None:
    assert client.ask("GET", "/api/about", Host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [{"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
     {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site", "Sec_Fetch_Mode": "no-cors"}],
)  # fmt: skip
def test_requests_from_other_pages_are_refused(client: Client, headers: dict[str, str]) -> None:
    answer = client.ask("POST", "/api/visits", **headers)
    assert answer.status == 403 and answer.error
    assert client.ask("GET", "/api/about", **headers).status == 403


def test_the_page_itself_and_a_link_to_it_are_answered(client: Client) -> None:
    own = f"http://127.0.0.1:{client.port}"
    assert client.ask("POST", "/api/visits", Origin=own, Sec_Fetch_Site="same-origin").status == 201
    assert client.ask("GET", "/", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="navigate").status == 200


def test_a_token_where_one_is_wanted() -> None:
    token = "a1b2c3d4e5f6g7h8"
    with serving(token=token) as (client, _, site):
        assert site.address.endswith(f"?token={token}")
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Cookie": "fastdiff=1"},
            {"Cookie": '=;;="\\'},
        ):
            assert client.ask("GET", "/api/about", **headers).status == 401
            assert client.ask("GET", "/", **headers).error
        assert client.ask("GET", "/?token=wrong").status == 401
        assert client.ask("GET", "/?token=%FF%00").status in (400, 401)
        assert (
            client.ask("GET", f"/api/about?token={token}").status == 401
        )  # only the page's address may hold it
        door = client.ask("GET", f"/?token={token}")
        assert door.status == 303 and door.headers["location"] == "/"
        cookie = door.headers["set-cookie"]
        assert "httponly" in cookie.lower() and "samesite=strict" in cookie.lower()
        assert client.ask("GET", "/api/about", Cookie=cookie.partition(";")[0]).status == 200
        assert client.ask("GET", "/api/about", Authorization=f"Bearer {token}").status == 200


def test_others_can_reach_it_only_with_a_token() -> None:
    here = Site(Watched())
    here.socket.close()
    assert here.token is None and here.address == f"http://127.0.0.1:{here.port}/"
    everywhere = Site(Watched(), host="0.0.0.0")
    assert everywhere.token and len(everywhere.token) >= 32
    everywhere.socket.close()
    with serving(host="0.0.0.0", names=("studio.example",)) as (client, _, site):
        headers = {"Authorization": f"Bearer {site.token}"}
        assert client.ask("GET", "/api/about").status == 401
        for host, status in (("studio.example", 200), ("192.168.1.7:80", 200), ("evil.example", 421)):
            assert client.ask("GET", "/api/about", Host=host, **headers).status == status


# Jobs


def test_a_picture_carries_the_recipe_that_makes_it_again(client: Client, visit: str) -> None:
    job = client.made(
        visit, prompts=["cat"], count=2, steps=3, seed=7, sampler="ddim", options="eta=0.5", spacing="karras"
    )
    assert [result["seed"] for result in job["results"]] == [7, 8]
    png = client.picture(visit, job["results"][1]["id"])
    recipe = read_recipe(io.BytesIO(png))
    assert recipe["arguments"]["seed"] == 8 and recipe["arguments"]["prompts"] == ["cat"]
    again = generate.generate(**recipe["arguments"], model=Watched())
    np.testing.assert_allclose(pixels(png).astype(int), to_pictures(again.images)[0].astype(int), atol=1)
    back = client.upload(visit, png)["recipe"]
    wanted = {
        "prompts": ["cat"],
        "seed": 8,
        "steps": 3,
        "sampler": "ddim",
        "options": "eta=0.5",
        "spacing": "karras",
        "count": 1,
    }
    assert back["operation"] == "generate" and wanted.items() <= back["fields"].items() and not back["notes"]


@pytest.mark.parametrize("operation", [name for name, one in OPERATIONS.items() if one.picture])
def test_every_operation_makes_pictures_and_restores_its_settings(
    client: Client, visit: str, operation: str
) -> None:
    if not OPERATIONS[operation].offered:
        pytest.skip(f"fastdiff.apps.{OPERATIONS[operation].app} is not installed")
    picture = client.upload(visit, encoded(photograph(30, 22)))
    mask = client.upload(visit, encoded(Image.new("L", (30, 22), 255)))
    inputs = {
        name: made["id"]
        for name, made in (("picture", picture), ("mask", mask))
        if getattr(OPERATIONS[operation], name)
    }
    few = {field.name for field in OPERATIONS[operation].fields(Watched())}
    asked = {name: value for name, value in {"steps": 3, "seed": 9, "prompt": "cat"}.items() if name in few}
    job = client.made(visit, operation, **asked, **inputs)
    png = client.picture(visit, job["results"][0]["id"])
    assert (job["before"]["width"], job["before"]["height"]) == pixels(png).shape[1::-1]
    assert pixels(client.picture(visit, job["before"]["id"])).shape == pixels(png).shape
    assert job["step"] == job["steps"] > 0 and np.ptp(pixels(png)) > 0
    recipe = read_recipe(io.BytesIO(png))
    assert operation == "outpaint" or recipe["inputs"]["picture"] == picture["digest"]
    back = client.upload(visit, png)["recipe"]
    # a picture that was extended is, to its recipe, a larger one whose rim is painted over
    assert (
        back["operation"] == {"outpaint": "inpaint"}.get(operation, operation)
        and asked.items() <= back["fields"].items()
        and not back["notes"]
    )


def test_the_same_seed_twice_is_the_same_picture(client: Client, visit: str) -> None:
    first, second, other = (client.made(visit, steps=3, seed=seed) for seed in (5, 5, 6))
    same, again, different = (
        client.picture(visit, job["results"][0]["id"]) for job in (first, second, other)
    )
    assert same == again and not np.array_equal(pixels(same), pixels(different))


def test_what_is_left_out_has_its_default_and_is_told(client: Client, visit: str) -> None:
    job = client.made(visit, steps=2)
    assert (
        job["fields"]["sampler"] == "dpmpp_2m"
        and job["fields"]["width"] == 16
        and job["fields"]["guidance"] is None
    )
    assert job["step"] == job["steps"] == 2


def test_events_tell_a_job_from_its_beginning_to_its_end(client: Client, model: Watched, visit: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
    connection.request("GET", f"{visit}/events")
    stream = connection.getresponse()
    assert stream.headers["content-type"].startswith("text/event-stream")
    with model.slow(0.01):
        client.begin(visit, steps=4)
        seen: list[tuple[str, dict]] = []
        while not seen or seen[-1][0] != "job" or seen[-1][1]["status"] != "done":
            kind = stream.readline().decode().removeprefix("event: ").strip()
            seen.append((kind, json.loads(stream.readline().decode().removeprefix("data: "))))
            stream.readline()
    connection.close()
    assert seen[0][0] == "state"
    assert [data["status"] for kind, data in seen if kind == "job"] == ["queued", "running", "done"]
    assert [data["step"] for kind, data in seen if kind == "progress"] == [1, 2, 3, 4]
    previews = [data["image"] for kind, data in seen if kind == "preview"]
    assert previews and all(image.startswith("data:image/jpeg;base64,") for image in previews)


def test_a_running_job_is_cancelled_within_one_step(client: Client, model: Watched, visit: str) -> None:
    with model.slow():
        before = model.calls
        job = client.begin(visit, steps=200)
        while model.calls < before + 3:
            time.sleep(0.005)
        assert client.ask("DELETE", f"{visit}/jobs/{job['id']}").status == 202
        at = model.calls
        ended = client.wait(visit, job["id"])
        assert ended["status"] == "cancelled" and not ended["results"] and model.calls <= at + 1
    assert client.ask("DELETE", f"{visit}/jobs/{job['id']}").json["status"] == "cancelled"
    assert client.made(visit, steps=1)["status"] == "done"  # the worker goes on


def test_a_waiting_job_is_cancelled_at_once(client: Client, model: Watched, visit: str) -> None:
    with model.slow():
        first, second = client.begin(visit, steps=200), client.begin(visit, steps=200)
        client.ask("DELETE", f"{visit}/jobs/{second['id']}")
        assert client.job(visit, second["id"])["status"] == "cancelled"
        assert client.job(visit, first["id"])["status"] in ("queued", "running")
        client.ask("DELETE", f"{visit}/jobs/{first['id']}")
        client.wait(visit, first["id"])


def test_a_broken_model_fails_a_job_and_no_other(client: Client, model: Watched, visit: str) -> None:
    model.broken = True
    try:
        job = client.wait(visit, client.begin(visit, steps=2)["id"])
    finally:
        model.broken = False
    assert job["status"] == "failed" and "RuntimeError" in job["message"]
    assert client.made(visit, steps=1)["status"] == "done"


# Bounds


def test_the_queue_is_bounded(client: Client, model: Watched, visit: str) -> None:
    other = client.visit()
    with model.slow():
        for _ in range(LIMITS.waiting):
            client.begin(visit, steps=200)
        refused = client.ask("POST", f"{visit}/jobs", {"operation": "generate"})
        assert refused.status == 429 and "waiting already" in refused.error
        client.begin(other, steps=200)
        assert "queue is full" in client.ask("POST", f"{other}/jobs", {"operation": "generate"}).error
        for address in (visit, other):
            assert client.ask("DELETE", address).status == 204
    assert client.made(client.visit(), steps=1)


def test_a_job_may_make_only_so_many_pixels(client: Client, visit: str) -> None:
    fields = {"width": 128, "height": 128, "count": 2}
    assert (
        "million pixels"
        in client.ask("POST", f"{visit}/jobs", {"operation": "generate", "fields": fields}).error
    )


def test_a_job_may_take_only_so_long() -> None:
    with serving(limits=Limits(seconds=0.2)) as (client, model, _), model.slow():
        visit = client.visit()
        job = client.wait(visit, client.begin(visit, steps=200)["id"])
        assert job["status"] == "failed" and "0.2 seconds" in job["message"] and job["step"] < 20


def test_old_jobs_make_room(client: Client, visit: str) -> None:
    jobs = [client.made(visit, steps=1, seed=i) for i in range(LIMITS.jobs + 2)]
    kept = [job["id"] for job in client.ask("GET", visit).json["jobs"]]
    assert kept == [job["id"] for job in jobs[2:]]
    assert client.ask("GET", f"{visit}/pictures/{jobs[0]['results'][0]['id']}.png").status == 404


def test_old_uploads_make_room() -> None:
    with serving(limits=Limits(uploads=2)) as (client, _, _):
        visit = client.visit()
        names = [client.upload(visit, encoded(photograph()))["id"] for _ in range(2)]
        client.picture(visit, names[0])  # used last
        client.upload(visit, encoded(photograph()))
        assert [client.ask("GET", f"{visit}/pictures/{name}.png").status for name in names] == [200, 404]


def test_a_visit_sees_only_its_own(client: Client, visit: str) -> None:
    job = client.made(visit, steps=1)
    other = client.visit()
    assert client.ask("GET", other).json["jobs"] == []
    assert client.ask("GET", f"{other}/pictures/{job['results'][0]['id']}.png").status == 404
    assert client.ask("DELETE", f"{other}/jobs/{job['id']}").status == 404
    assert len(visit.rpartition("/")[2]) >= 20 and len(job["results"][0]["id"]) >= 16


def test_a_visit_goes_on_after_a_reload_and_ends_when_its_page_is_gone() -> None:
    with serving(limits=Limits(visits=2, grace=0.3)) as (client, model, site), model.slow():
        visit = client.visit()
        name = visit.rpartition("/")[2]
        assert client.ask("POST", f"/api/visits?again={name}").json["visit"] == name
        client.begin(visit, steps=200)
        until = time.monotonic() + 10
        while site.studio.visits and time.monotonic() < until:
            time.sleep(0.05)
        assert not site.studio.visits and site.studio.worker.waiting == type(site.studio.worker.waiting)()
        assert client.ask("GET", visit).status == 404
        assert client.ask("POST", f"/api/visits?again={name}").json["visit"] != name


def test_pages_at_once_are_bounded() -> None:
    with serving(limits=Limits(visits=2)) as (client, model, _), model.slow():
        first, second = client.visit(), client.visit()
        for visit in (first, second):
            client.begin(visit, steps=200)
        assert client.ask("POST", "/api/visits").status == 429
        client.ask("DELETE", first)
        third = client.visit()
        assert client.ask("GET", second).status == client.ask("GET", third).status == 200


# Stopping


def test_it_stops_while_pages_listen_and_a_job_runs() -> None:
    with serving() as (client, model, site), model.slow():
        visit = client.visit()
        connection = http.client.HTTPConnection("127.0.0.1", client.port, timeout=20)
        connection.request("GET", f"{visit}/events")
        stream = connection.getresponse()
        job = client.begin(visit, steps=200)
        client.wait(visit, job["id"], "running")
        began = time.monotonic()
        site.server.stop()
        assert b"event: ended" in stream.read()
        connection.close()
        site.studio.worker.join(5)
        assert not site.studio.worker.is_alive() and time.monotonic() - began < 5
