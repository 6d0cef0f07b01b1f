"""Jobs in the browser: creating one, watching it live, steering it, and losing nothing when the connection goes."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from concilia_kit.wire.chain import STREAM, EventName, LedgerEvent
from concilia_kit.wire.jobs import JobView, Phase
from playwright.sync_api import Page, expect

from .person import Person
from .stack import ENDED, HOSPITALS, BrowserStack, until

MakePerson = Callable[..., Person]

ROUND_MS = 60_000
"""A round takes some three seconds; a machine that does much else takes its time."""

JOB_SECONDS = 300

_OFFLINE = "ERR_INTERNET_DISCONNECTED|ERR_NETWORK_CHANGED|ERR_FAILED|ERR_INCOMPLETE_CHUNKED_ENCODING"

_NOTE_CONFIRMATIONS = """() => {
  globalThis.__confirmed = {};
  const note = () => {
    for (const link of document.querySelectorAll('[data-confirmed]')) {
      const asked = new URL(link.href).searchParams;
      globalThis.__confirmed[`${asked.get('round')} ${asked.get('hospital')}`] ??= Date.now();
    }
  };
  new MutationObserver(note).observe(document.querySelector('#view'), {childList: true, subtree: true});
  note();
  return Date.now();
}"""

_DRAWN = "canvas => canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.some(v => v > 0)"

# Chromium's offline mode refuses new requests and leaves open ones alone: the open stream is cut here.
_CUTTABLE = """(() => {
  const ask = globalThis.fetch;
  const lines = new Set();
  globalThis.fetch = (address, options = {}) => {
    if (!String(address).endsWith('/stream')) return ask(address, options);
    const line = new AbortController();
    lines.add(line);
    return ask(address, { ...options, signal: AbortSignal.any([options.signal, line.signal]) });
  };
  globalThis.__cut = () => lines.forEach((line) => line.abort(new TypeError('network error')));
})();"""


# --------------------------------------------------------------------------------------------------- a job's whole life


def test_an_administrator_creates_a_job_and_sees_it_to_its_end(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin", signed_in=True)
    page = ada.go("/jobs")
    page.get_by_role("link", name="New job").click()
    _fill(page, Name="Trial of the form", Rounds="2", Quorum=str(HOSPITALS))
    page.get_by_label("Network").select_option("resnet18")
    page.get_by_label("Initial weights").select_option("random")
    page.get_by_text("More about training and evaluation").click()
    _fill(page, **{"Batch size": "16", "Picture size in pixels": "32"})
    _fill(page, **{"Training pictures, at most": "32", "Held-out pictures, at most": "60"})
    expect(page.locator("#cost-transactions")).to_have_text(str(2 * (2 + HOSPITALS) + 1))
    page.get_by_role("button", name="Create the job").click()

    page.wait_for_url(re.compile(r"/job\?id=[0-9a-f]{64}$"))
    expect(page.get_by_role("heading", level=1)).to_have_text("Trial of the form")
    expect(page.locator("#connection")).to_have_text("live")
    expect(page.locator(".hospitals > li")).to_have_count(HOSPITALS)
    expect(page.get_by_role("timer")).to_have_text(re.compile(r"^\d+:\d\d(:\d\d)?$"), timeout=ROUND_MS)
    expect(page.get_by_role("link", name="on the ledger").first).to_be_visible(timeout=ROUND_MS)
    expect(page.get_by_role("heading", name="The model is published")).to_be_visible(timeout=3 * ROUND_MS)
    expect(page.locator("#connection")).to_have_text("ended, all is shown")

    view = stack.admin.job(page.url.rpartition("=")[2])
    assert (view.phase, view.spec.local.image_size, view.spec.local.max_images) == (Phase.FINISHED, 32, 32)
    _compare(page, stack, view)
    assert view.spec.calibrate
    assert view.rounds[-1].calibrated is not None
    temperature = f"a temperature of {view.rounds[-1].calibrated.use.temperature:.3f}"
    expect(page.locator("#calibration")).to_contain_text(temperature)
    for name in ("accuracy", "spread", "loss", "seconds", "bytes", "reliability"):
        # What came with the end is drawn within a frame or two.
        until(lambda name=name: page.locator(f"#chart-{name}").evaluate(_DRAWN), seconds=5)  # type: ignore[misc]
    expect(page.get_by_role("link", name="See its lineage")).to_have_attribute("href", f"/lineage?job={view.id}")
    expect(page.get_by_role("link", name="Ask it about a picture")).to_have_attribute("href", "/diagnosis")
    expect(page.get_by_role("button", name="Pause")).to_have_count(0)
    assert ada.axe() == []

    page.get_by_role("button", name="Read its card").click()
    dialog = page.get_by_role("dialog", name="The model's card")
    expect(dialog.get_by_label("The card, in Markdown")).to_contain_text(str(view.model))
    assert ada.axe("dialog") == []
    with page.expect_download() as downloading:
        dialog.get_by_role("button", name="Save it").click()
    assert downloading.value.suggested_filename == f"concilia-card-{view.id[:12]}.md"
    assert downloading.value.path().read_text().startswith("# Trial of the form\n")
    dialog.get_by_role("button", name="Close").click()
    expect(dialog).to_have_count(0)


def test_a_paused_job_goes_on_and_a_stopped_one_ends(person: MakePerson, stack: BrowserStack) -> None:
    job = stack.new_job(name="To be steered", rounds=50)
    ada = person("admin", signed_in=True)
    page = ada.go(f"/job?id={job.id}")
    page.get_by_role("button", name="Pause").click()
    expect(page.locator("#phase")).to_have_text("paused")
    expect(page.get_by_role("button", name="Resume")).to_be_enabled()
    assert stack.admin.job(job.id).paused
    stack.await_job(job.id, lambda view: "paused" in view.detail)
    expect(page.get_by_text("paused by an administrator")).to_be_visible()
    reached = stack.admin.job(job.id).round

    page.get_by_role("button", name="Resume").click()
    expect(page.locator("#phase")).not_to_have_text("paused")
    stack.await_job(job.id, lambda view: view.round > reached)
    expect(page.get_by_role("heading", name=re.compile(r"^Round \d+$"))).to_be_visible()

    page.get_by_role("button", name="Stop…").click()
    dialog = page.get_by_role("dialog", name="Stop “To be steered”?")
    assert ada.axe("dialog") == []
    dialog.get_by_role("button", name="Keep it running").click()
    expect(dialog).to_have_count(0)
    assert stack.admin.job(job.id).phase not in ENDED
    page.get_by_role("button", name="Stop…").click()
    dialog.get_by_role("button", name="Stop the job").click()
    expect(page.get_by_role("heading", name="The job was stopped")).to_be_visible()
    expect(page.get_by_role("button", name="Stop…")).to_have_count(0)
    assert stack.admin.job(job.id).phase is Phase.STOPPED


# ----------------------------------------------------------------------------------------------------------- promptness


def test_a_confirmation_is_shown_within_a_second_of_its_event(person: MakePerson, stack: BrowserStack) -> None:
    job = stack.new_job(name="To be timed", rounds=3)
    page = person("admin", signed_in=True).go(f"/job?id={job.id}")
    watched_from = page.evaluate(_NOTE_CONFIRMATIONS)
    view = stack.await_job(job.id, lambda view: view.phase is Phase.FINISHED, JOB_SECONDS)
    expect(page.get_by_role("heading", name="The model is published")).to_be_visible()

    shown: dict[str, float] = page.evaluate("() => globalThis.__confirmed")
    happened = _when_recorded(stack, job.id)
    assert len(happened) == len(view.rounds[1:]) * HOSPITALS
    late = {update: round(shown[update] - at) for update, at in happened.items() if at > watched_from}
    assert len(late) >= HOSPITALS
    print("milliseconds from a confirmation's event to its showing:", sorted(late.values()))
    assert max(late.values()) < 1000


def test_a_connection_cut_for_ten_seconds_loses_nothing(person: MakePerson, stack: BrowserStack) -> None:
    job = stack.new_job(name="To be cut off", rounds=5)
    ada = person("admin", signed_in=True)
    ada.expect("console", _OFFLINE)
    ada.page.add_init_script(_CUTTABLE)
    page = ada.go(f"/job?id={job.id}")
    streams: list[dict[str, str]] = []
    page.on("request", lambda asked: streams.append(asked.headers) if asked.url.endswith("/stream") else None)
    stack.await_job(job.id, lambda view: view.phase is Phase.TRAINING)

    before = len(stack.admin.events(job.id))
    ada.context.set_offline(True)
    page.evaluate("() => globalThis.__cut()")
    expect(page.locator("#connection")).to_have_text("reconnecting…, nothing is lost")
    page.wait_for_timeout(10_000)
    until(lambda: len(stack.admin.events(job.id)) > before, JOB_SECONDS)  # else nothing could be lost
    ada.context.set_offline(False)
    expect(page.locator("#connection")).to_have_text("live")
    assert streams[-1].get("last-event-id"), "the stream was not resumed where it broke off"

    view = stack.await_job(job.id, lambda view: view.phase is Phase.FINISHED, JOB_SECONDS)
    expect(page.locator("#connection")).to_have_text("ended, all is shown")
    _compare(page, stack, view)


# --------------------------------------------------------------------------------------------------------- refusals


def test_what_is_wrong_with_a_new_job_is_said_beside_its_field(person: MakePerson, stack: BrowserStack) -> None:
    ada = person("admin", signed_in=True)
    page = ada.go("/new-job")
    before = len(stack.admin.jobs())
    _fill(page, Rounds="0")
    page.get_by_text("More about training and evaluation").click()
    _fill(page, Seed="many")
    page.get_by_text("More about training and evaluation").click()
    expect(page.get_by_label("Seed")).to_be_hidden()
    page.get_by_role("button", name="Create the job").click()
    expect(page.get_by_label("Seed")).to_be_visible()
    expect(page.get_by_role("alert")).to_contain_text("The job was not created")
    expect(page.get_by_label("Name")).to_be_focused()
    for label, sentence in (
        ("Name", "Give the job a name."),
        ("Rounds", "At least 1."),
        ("Seed", "That is not a number."),
    ):
        expect(page.get_by_label(label, exact=True)).to_have_accessible_description(re.compile(re.escape(sentence)))
    assert ada.axe() == []

    ada.expect("console", "status of 422 .*/api/aggregator/v1/jobs$")
    ada.expect("console", "status of 404 .*/info$")
    _fill(page, Name="Of nothing", Rounds="1", Seed="0")
    page.get_by_label("Initial weights").select_option("artifact")
    page.get_by_label("Artifact's digest").fill("ab" * 32)
    page.get_by_role("button", name="Create the job").click()
    expect(page.get_by_label("Artifact's digest")).to_have_accessible_description(re.compile("No such file is stored."))
    expect(page.get_by_label("Artifact's digest")).to_be_focused()
    assert len(stack.admin.jobs()) == before


def test_a_service_that_refuses_a_field_has_its_sentence_there(person: MakePerson) -> None:
    ada = person("admin", signed_in=True)
    ada.expect("console", "status of 422 .*/api/aggregator/v1/jobs$")
    page = ada.go("/new-job")
    wrong = {"where": "body.local.learning_rate", "what": "Input should be a power of two"}
    problem = {"code": "invalid_request", "detail": "the request does not fit its schema", "errors": [wrong]}
    page.route("**/v1/initial-models", lambda route: route.fulfill(status=201, json={"digest": "ab" * 32}))
    page.route("**/v1/jobs", lambda route: route.fulfill(status=422, json=problem))
    _fill(page, Name="Refused")
    page.get_by_role("button", name="Create the job").click()
    expect(page.get_by_label("Learning rate")).to_have_accessible_description(re.compile("should be a power of two"))


def test_who_is_no_administrator_watches_and_has_no_buttons(person: MakePerson, stack: BrowserStack) -> None:
    cleo = person("clinician", signed_in=True)
    page = cleo.go("/jobs")
    expect(page.get_by_role("link", name=stack.job.spec.name)).to_be_visible()
    expect(page.get_by_role("link", name="New job")).to_have_count(0)
    job = stack.new_job(name="To be watched", rounds=1)
    cleo.go(f"/job?id={job.id}")
    expect(page.get_by_role("heading", level=1)).to_have_text("To be watched")
    for name in ("Pause", "Resume", "Stop…"):
        expect(page.get_by_role("button", name=name)).to_have_count(0)
    cleo.go("/new-job")
    expect(page.get_by_role("heading", name="Your account may not see the form for new jobs")).to_be_visible()
    stack.await_job(job.id, lambda view: view.phase in ENDED)


@pytest.mark.parametrize("job", ["f" * 64, "nonsense", ""])
def test_a_job_that_is_none(person: MakePerson, job: str) -> None:
    ada = person("admin", signed_in=True)
    ada.expect("console", "status of (404|422)")
    page = ada.go(f"/job?id={job}")
    expect(page.get_by_role("heading", name="There is no such job")).to_be_visible()
    expect(page.get_by_role("link", name="See all jobs")).to_be_visible()


def test_before_the_first_job_the_next_step_is_said(person: MakePerson) -> None:
    ada = person("admin", signed_in=True)
    ada.page.route("**/api/aggregator/v1/jobs", lambda route: route.fulfill(json=[]))
    page = ada.go("/jobs")
    expect(page.get_by_role("heading", name="No job yet")).to_be_visible()
    expect(page.get_by_role("link", name="New job")).to_have_count(2)
    assert ada.axe() == []


# ------------------------------------------------------------------------------------------------------------- helpers


def _fill(page: Page, **fields: str) -> None:
    for label, text in fields.items():
        page.get_by_label(label, exact=True).fill(text)


def _when_recorded(stack: BrowserStack, job: str) -> dict[str, float]:
    """When each update of a job was put on the ledger's stream, in milliseconds, by round and hospital."""
    entries: Any = stack.redis.xrange(STREAM)
    events = [(float(at.split("-")[0]), LedgerEvent.model_validate_json(fields["event"])) for at, fields in entries]
    return {
        f"{event.round} {event.arguments['hospital']}": at
        for at, event in events
        if event.job == job and event.name is EventName.UPDATE_RECORDED
    }


def _compare(page: Page, stack: BrowserStack, view: JobView) -> None:
    """The page shows of every round what the ledger and the aggregator say."""
    events = [event for event in stack.admin.events(view.id) if event.name is EventName.UPDATE_RECORDED]
    for number in [item.round for item in view.rounds if item.round]:
        page.get_by_label("Show", exact=True).select_option(str(number))
        expect(page.get_by_role("heading", name=f"Round {number}", exact=True)).to_be_visible()
        rows = page.locator(".hospitals > li")
        recorded = {str(event.arguments["hospital"]): event for event in events if event.round == number}
        assert len(recorded) == HOSPITALS
        expect(rows).to_have_count(len(recorded))
        for hospital, event in recorded.items():
            row = page.locator(f'.hospitals > li[data-hospital="{hospital}"]')
            expect(row.get_by_text(f"block {event.block},")).to_be_visible()
            expect(row.get_by_title(event.transaction)).to_be_visible()
            expect(row.locator(".latency")).to_have_text(re.compile(r"^[\d.]+ (ms|s|min|h)"))
        confusion = next(item.confusion for item in view.rounds if item.round == number)
        assert confusion is not None
        cells = page.locator(".matrix td.cell").all_inner_texts()
        assert [int(cell) for cell in cells] == [value for row in confusion for value in row]
    page.get_by_label("Show", exact=True).select_option("")
    evaluated = [item for item in view.rounds if item.pooled]
    assert len(evaluated) == len(view.rounds)
    table = page.get_by_role("region", name="Balanced accuracy and melanoma recall as a table", include_hidden=True)
    shown = table.locator("tbody tr td:nth-of-type(1)").all_text_contents()
    assert shown == [f"{item.pooled.balanced_accuracy * 100:.1f} %" for item in evaluated if item.pooled]
