"""The ledger in the browser: events and their filters, files of them, a job's lineage, its verification, one update."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from concilia_kit.wire.chain import EventName, LedgerRound
from playwright.sync_api import Locator, Page, Route, expect

from .conftest import MakePerson
from .stack import HOSPITALS, BrowserStack

VERIFY_MS = 90_000
ROUNDS = 2


def events(stack: BrowserStack, **wanted: str | list[str]) -> list[dict[str, Any]]:
    """What the chain service says beside the browser, the newest first."""
    headers = {"Authorization": f"Bearer {stack.token('auditor', 'chain')}"}
    asked = {"limit": "1000", **wanted}
    answer = httpx.get(f"{stack.url}/api/chain/v1/events", params=asked, headers=headers, timeout=30)
    found: list[dict[str, Any]] = answer.raise_for_status().json()["events"]
    return found


def rows(page: Page) -> Locator:
    return page.locator(".events > li")


def in_pages_of(page: Page, size: int) -> None:
    """Have the chain service give so few events a page that there are several."""

    def fewer(route: Route) -> None:
        route.continue_(url=re.sub(r"limit=\d+", f"limit={size}", route.request.url))

    page.route(re.compile(r"/api/chain/v1/events\?"), fewer)


def saved(page: Page, button: str) -> str:
    with page.expect_download() as waiting:
        page.get_by_role("button", name=button).click()
    return Path(waiting.value.path()).read_bytes().decode()


# -------------------------------------------------------------------------------------------------------------- events


def test_every_event_is_told_in_words_with_its_place(person: MakePerson, stack: BrowserStack) -> None:
    eve = person("auditor", signed_in=True)
    page = eve.go(f"/ledger?job={stack.job.id}")
    recorded = events(stack, job=stack.job.id)
    assert len(recorded) == ROUNDS * (2 + HOSPITALS) + 1
    expect(rows(page)).to_have_count(len(recorded))
    sites = {node.address: node.registration.site for node in stack.admin.nodes()}
    for at, event in enumerate(recorded):
        row = rows(page).nth(at)
        expect(row).to_contain_text(f"block {event['block']:,}")
        expect(row.locator(f'code[title="{event["transaction"]}"]')).to_be_visible()
        if event["name"] == EventName.UPDATE_RECORDED:
            expect(row).to_contain_text(f"{sites[event['account']]} submitted an update in round {event['round']}")
    rows(page).first.get_by_text("As recorded").click()
    expect(rows(page).first.locator("dl")).to_contain_text(stack.job.model or "")


def test_filters_work_by_keyboard_and_live_in_the_address(person: MakePerson, stack: BrowserStack) -> None:
    eve = person("auditor", signed_in=True)
    page = eve.go("/ledger")
    page.get_by_text("Filter", exact=True).focus()
    page.keyboard.press("Enter")
    page.get_by_label("Job").select_option(stack.job.id)
    page.get_by_label("Round", exact=True).focus()
    page.keyboard.type("2")
    page.get_by_label("update submitted").focus()
    page.keyboard.press("Space")
    page.get_by_label("round closed").focus()
    page.keyboard.press("Space")
    page.get_by_label("Round", exact=True).focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"kind=UpdateRecorded&kind=RoundClosed"))
    wanted = events(stack, job=stack.job.id, round="2", name=["UpdateRecorded", "RoundClosed"])
    assert len(wanted) == HOSPITALS + 1
    expect(rows(page)).to_have_count(len(wanted))
    filters = page.get_by_role("list", name="Active filters")
    expect(filters.get_by_role("listitem")).to_have_count(5)  # four filters, and the way to clear them

    page.reload()
    expect(rows(page)).to_have_count(len(wanted))
    filters.get_by_role("button", name="update submitted").click()
    expect(rows(page)).to_have_count(1)
    page.go_back()
    expect(rows(page)).to_have_count(len(wanted))
    filters.get_by_role("button", name="Clear all").click()
    expect(filters).to_have_count(0)
    assert page.url.endswith("/ledger")


def test_an_account_and_blocks_narrow_events(person: MakePerson, stack: BrowserStack) -> None:
    hospital = stack.account("node-0").address
    recorded = events(stack, account=hospital, name="UpdateRecorded", job=stack.job.id)
    assert len(recorded) == ROUNDS
    block = recorded[0]["block"]
    eve = person("auditor", signed_in=True)
    page = eve.go(f"/ledger?account={hospital}&kind=UpdateRecorded&from={block}&to={block}")
    expect(rows(page)).to_have_count(1)
    expect(rows(page).get_by_role("link", name="Update")).to_have_attribute(
        "href", f"/update?job={stack.job.id}&round={ROUNDS}&hospital={hospital}"
    )


def test_filters_that_make_no_sense_are_said_to(person: MakePerson) -> None:
    eve = person("auditor", signed_in=True)
    page = eve.go("/ledger?round=0&from=9&to=3&account=0x12")
    expect(page.get_by_role("alert")).to_have_count(3)
    expect(page.get_by_text("Rounds are numbered from 1.")).to_be_visible()
    expect(page.get_by_text("The last block comes before the first.")).to_be_visible()
    expect(page.get_by_role("button", name="Save as CSV")).to_be_disabled()


def test_nothing_found_says_what_to_do(person: MakePerson, stack: BrowserStack) -> None:
    eve = person("auditor", signed_in=True)
    page = eve.go(f"/ledger?job={stack.job.id}&round=77")
    expect(page.get_by_text("Nothing on the ledger fits these filters. Take one away.")).to_be_visible()


def test_more_is_loaded_page_by_page(person: MakePerson, stack: BrowserStack) -> None:
    eve = person("auditor", signed_in=True)
    in_pages_of(eve.page, 5)
    page = eve.go(f"/ledger?job={stack.job.id}")
    recorded = events(stack, job=stack.job.id)
    expect(rows(page)).to_have_count(5)
    while page.get_by_role("button", name="Load more").count():
        shown = rows(page).count()
        page.get_by_role("button", name="Load more").click()
        expect(rows(page)).to_have_count(min(shown + 5, len(recorded)))
        eve.settled()
    expect(page.get_by_text(f"All {len(recorded)} are shown.")).to_be_visible()


# --------------------------------------------------------------------------------------------------------------- files


def test_files_hold_every_page_of_what_the_filters_give(person: MakePerson, stack: BrowserStack) -> None:
    eve = person("auditor", signed_in=True)
    in_pages_of(eve.page, 4)
    page = eve.go(f"/ledger?job={stack.job.id}&kind=UpdateRecorded&kind=RoundClosed")
    recorded = events(stack, job=stack.job.id, name=["UpdateRecorded", "RoundClosed"])
    assert len(recorded) == ROUNDS * (HOSPITALS + 1)
    assert json.loads(saved(page, "Save as JSON")) == recorded
    expect(page.get_by_text(f"{len(recorded)} events saved as ledger.json.")).to_be_visible()

    table = list(csv.DictReader(io.StringIO(saved(page, "Save as CSV"), newline="")))
    assert len(table) == len(recorded)
    for row, event in zip(table, recorded, strict=True):
        assert json.loads(row.pop("arguments")) == event["arguments"]
        assert row == {name: "" if event[name] is None else str(event[name]) for name in row}


# ------------------------------------------------------------------------------------------------------------- lineage


def test_a_finished_jobs_lineage_leads_from_weights_to_model(person: MakePerson, stack: BrowserStack) -> None:
    eve = person("auditor", signed_in=True)
    page = eve.go("/ledger")
    jobs = page.get_by_role("region", name="Where models came from")
    if (older := jobs.get_by_text("Older jobs")).count():  # other journeys may have started many since
        older.click()
    jobs.get_by_role("link", name=stack.job.spec.name).click()
    page.wait_for_url(f"**/lineage?job={stack.job.id}")
    eve.settled()
    graph = page.get_by_role("region", name="Graph of the lineage")
    ledger = stack.admin.ledger_job(stack.job.id)
    expect(graph.locator("a.node.initial")).to_contain_text(ledger.rounds[0].base[:8])
    expect(graph.locator("a.node.update")).to_have_count(ROUNDS * HOSPITALS)
    for at, item in enumerate(ledger.rounds):
        expect(graph.locator("a.node.model").nth(at)).to_contain_text((item.global_digest or "")[:8])
    expect(graph.locator("a.node.published")).to_contain_text(ledger.head[:8])
    published = events(stack, job=stack.job.id, name="ModelPublished")[0]
    expect(page.get_by_role("region", name="In short")).to_contain_text(f"in block {published['block']:,}")
    edges = ROUNDS * HOSPITALS * 2 + 1
    expect(graph.locator("path.edge")).to_have_count(edges)

    page.get_by_text("The same as a list").click()
    for node in stack.admin.nodes():
        expect(page.get_by_role("link", name=f"{node.registration.site}, round 1")).to_be_visible()

    graph.locator("a.node.update").first.focus()
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/update\?job="))
    expect(page.get_by_text("It was folded into the model of round 1.")).to_be_visible()


def test_a_lineage_can_be_saved(person: MakePerson, stack: BrowserStack) -> None:
    eve = person("auditor", signed_in=True)
    page = eve.go(f"/lineage?job={stack.job.id}")
    document = json.loads(saved(page, "Save as JSON"))
    ledger = stack.admin.ledger_job(stack.job.id)
    assert document["ledger"] == ledger.model_dump(mode="json")
    assert document["model"]["digest"] == stack.job.model


def test_a_phone_shows_the_lineage_top_down(person: MakePerson, stack: BrowserStack) -> None:
    eve = person("auditor", signed_in=True, width=390)
    page = eve.go(f"/lineage?job={stack.job.id}")
    group = page.get_by_role("button", name=f"{HOSPITALS} updates")
    expect(group).to_have_count(ROUNDS)
    group.first.focus()
    page.keyboard.press("Enter")
    expect(group.first).to_have_attribute("aria-expanded", "true")
    expect(page.locator("a.node.update")).to_have_count(HOSPITALS)
    page.keyboard.press("Enter")
    expect(page.locator("a.node.update")).to_have_count(0)
    first, last = page.locator("a.node.initial").bounding_box(), page.locator("a.node.published").bounding_box()
    assert first is not None
    assert last is not None
    assert last["y"] > first["y"]
    assert abs(last["x"] - first["x"]) < 1


def test_a_job_that_is_not_on_the_ledger(person: MakePerson) -> None:
    eve = person("auditor", signed_in=True)
    eve.expect("console", r"status of 404 \(.*\) /api/")
    page = eve.go(f"/lineage?job={'ab' * 32}")
    expect(page.get_by_role("heading", name="Nothing of this job is on the ledger")).to_be_visible()
    eve.go("/lineage?job=nonsense")
    expect(page.get_by_role("heading", name="This address names no job.")).to_be_visible()


# -------------------------------------------------------------------------------------------------------- verification


def test_an_auditor_has_a_job_recomputed(person: MakePerson, stack: BrowserStack) -> None:
    eve = person("auditor", signed_in=True)
    page = eve.go(f"/lineage?job={stack.job.id}")
    verification = page.get_by_role("region", name="Verification")
    expect(verification).to_contain_text(f"concilia verify {stack.job.id}")
    page.evaluate(
        """() => {
            globalThis.__steps = new Set();
            const note = () => {
              const step = document.querySelector(".verification-progress label");
              if (step) globalThis.__steps.add(step.textContent);
            };
            const panel = document.querySelector(".verification");
            new MutationObserver(note).observe(panel, {childList: true, subtree: true, characterData: true});
        }"""
    )
    verification.get_by_role("button", name="Verify").click()
    verdict = verification.locator(".success")
    updates = ROUNDS * HOSPITALS
    sentence = f"Recomputed bit for bit: {ROUNDS} rounds, {updates} updates, {updates} signatures."
    expect(verification.get_by_role("button", name="Verify")).to_be_enabled(timeout=VERIFY_MS)
    expect(verdict).to_contain_text(sentence)
    assert page.evaluate("() => globalThis.__steps.size") > 0
    assert eve.axe() == []

    verification.get_by_role("button", name="Verify again").click()
    expect(verification.get_by_text(re.compile(r"Earlier verifications \(\d+\)"))).to_be_visible()
    expect(verification.get_by_role("button", name="Verify again")).to_be_enabled(timeout=VERIFY_MS)
    expect(verdict).to_contain_text(sentence)


def test_a_clinician_sees_verdicts_and_asks_for_none(person: MakePerson, stack: BrowserStack) -> None:
    carl = person("clinician", signed_in=True)
    carl.expect("console", r"status of 403 \(.*\) /api/model/v1/artifacts/")
    page = carl.go(f"/lineage?job={stack.job.id}")
    expect(page.get_by_text("Administrators and auditors can have it done.")).to_be_visible()
    expect(page.get_by_role("button", name="Verify")).to_have_count(0)


# -------------------------------------------------------------------------------------------------------------- update


def one_round(stack: BrowserStack, number: int) -> LedgerRound:
    return next(item for item in stack.admin.ledger_job(stack.job.id).rounds if item.round == number)


def test_an_updates_page_agrees_with_the_chain_service(person: MakePerson, stack: BrowserStack) -> None:
    recorded = one_round(stack, 1)
    (transactions,) = [stack.admin.transactions(stack.job.id)]
    sites = {node.address: node.registration.site for node in stack.admin.nodes()}
    eve = person("auditor", signed_in=True)
    for item in recorded.updates:
        update = item.update
        page = eve.go(f"/update?job={stack.job.id}&round=1&hospital={update.hospital}")
        expect(page.get_by_role("heading", name=sites[update.hospital])).to_be_visible()
        for value in (update.digest, update.base, update.metrics, update.hospital, item.signature, item.transaction):
            expect(page.locator(f'.copyable code[title="{value}"]')).to_be_visible()
        recording = page.get_by_role("region", name="How it was recorded")
        expect(recording).to_contain_text(f"{item.block:,}")
        relayed = next(each for each in transactions if each.transaction == item.transaction)
        expect(recording).to_contain_text(f"{relayed.gas:,}")
        expect(page.get_by_role("region", name="What became of it")).to_contain_text(recorded.global_digest or "")
        assert item.metrics is not None
        measured = page.get_by_role("region", name="What the hospital measured")
        expect(measured).to_contain_text(f"{item.metrics.loss:.3f}")
        expect(page.get_by_role("region", name="What the hospital signed")).to_contain_text(f"{update.samples:,}")


def test_hashes_can_be_copied(person: MakePerson, stack: BrowserStack) -> None:
    item = one_round(stack, 1).updates[0]
    eve = person("auditor", signed_in=True)
    eve.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = eve.go(f"/update?job={stack.job.id}&round=1&hospital={item.update.hospital}")
    page.get_by_role("button", name="Copy the update's hash").click()
    expect(page.get_by_text("copied", exact=True)).to_be_visible()
    assert page.evaluate("() => navigator.clipboard.readText()") == item.update.digest


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("?job={job}&round=1&hospital={stranger}", "submitted no update in round 1 of this job"),
        ("?job={job}&round=99&hospital={stranger}", "The ledger knows no such round of this job."),
        ("?job={job}&round=one&hospital={stranger}", "This address names no update."),
        ("", "This address names no update."),
    ],
)
def test_an_update_that_is_not_there(person: MakePerson, stack: BrowserStack, query: str, sentence: str) -> None:
    eve = person("auditor", signed_in=True)
    eve.expect("console", r"status of 404 \(.*\) /api/")
    page = eve.go("/update" + query.format(job=stack.job.id, stranger=stack.stranger().address))
    expect(page.get_by_role("heading", name=sentence)).to_be_visible()
    expect(page.get_by_role("link", name="See the ledger")).to_be_visible()


# ------------------------------------------------------------------------------------------------------------- reading


@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("which", ["ledger", "lineage", "update"])
def test_pages_read_well(person: MakePerson, stack: BrowserStack, which: str, scheme: str, width: int) -> None:
    paths = {
        "ledger": f"/ledger?job={stack.job.id}",
        "lineage": f"/lineage?job={stack.job.id}",
        "update": f"/update?job={stack.job.id}&round=1&hospital={stack.account('node-0').address}",
    }
    eve = person("auditor", signed_in=True, scheme=scheme, width=width)
    eve.go(paths[which])
    assert eve.axe() == []
    assert eve.overflow() == 0
    assert eve.vitals().cls < 0.1
