"""The main job, end to end, on one machine: start everything, train, log, publish, predict, verify, stop everything."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from concilia_kit.classification import Declaration
from concilia_kit.wire.jobs import JobSpec, JobView, Phase, Recording
from concilia_kit.wire.masking import SecureAggregation
from concilia_kit.wire.models import InitialModel, Prediction
from concilia_kit.wire.strategy import OWN_TENSORS, Strategy
from concilia_kit.wire.training import Architecture, Evaluation, LocalTraining
from concilia_kit.wire.verification import Verdict
from rich.console import Console

from concilia import output
from concilia.client import Client
from concilia.commands.jobs import check_weights, initial_weights, watch
from concilia.commands.models import print_prediction
from concilia.commands.verification import print_verdict, run_verification
from concilia.connection import Connection, Endpoints, UsageError
from concilia.stack import dataset, supervisor
from concilia.stack.enrolment import enrol, make_keys, write_connection
from concilia.stack.layout import SERVICES, Layout, Process, Site, headers_of
from concilia.stack.supervisor import Supervisor

START_SECONDS = 240.0
MODEL_BYTES = {
    Architecture.RESNET50: 95e6,
    Architecture.RESNET18: 45e6,
    Architecture.MOBILENET_V2: 9.5e6,
    Architecture.EFFICIENTNET_B0: 17e6,
    Architecture.CONVNEXT_TINY: 112e6,
    Architecture.RESNET18_GN: 45e6,
    Architecture.MOBILENET_V2_GN: 9.5e6,
}
SITES = 4


class DemoFailed(Exception):
    """The job did not come to its end; the message says where it stopped."""


@dataclass(frozen=True)
class Plan:
    """What to run."""

    directory: Path
    port: int
    data: Path | None
    declared: Path | None
    """The file that `declaration` is of, None for HAM10000."""
    declaration: Declaration
    drawn_images: int
    architecture: Architecture
    weights: str
    strategy: Strategy
    recording: Recording
    secure: SecureAggregation | None
    """Whether the aggregator sees sums only."""
    rounds: int
    local: LocalTraining
    evaluation: Evaluation
    seed: int
    threads: int
    keep: bool
    pages: Path | None
    """Folder of the built pages, None for a stack without."""
    sealed: bool
    """Whether the artifact store is encrypted."""
    console: Console
    """Where results are printed for people."""


@dataclass
class Result:
    """What a run came to."""

    plan: Plan
    source: str
    images: int
    overlap: int
    initial: InitialModel
    job: JobView
    transactions: list[dict[str, Any]]
    updates: int
    signers: int
    picture: Path
    prediction: Prediction
    verdict: Verdict
    seconds: float

    def report(self) -> dict[str, Any]:
        """The report as it lies under `report.json`."""
        return {
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "source": self.source,
            "images": self.images,
            "overlapping_lesions": self.overlap,
            "architecture": self.plan.architecture.value,
            "initial_weights": self.initial.model_dump(mode="json"),
            "caps": {
                "training_images_per_site_and_round": self.plan.local.max_images,
                "held_out_images_per_site": self.plan.evaluation.max_images,
            },
            "job": self.job.model_dump(mode="json"),
            "updates_logged": self.updates,
            "signers": self.signers,
            "transactions": self.transactions,
            "prediction": self.prediction.model_dump(mode="json"),
            "verdict": self.verdict.model_dump(mode="json"),
            "seconds": round(self.seconds, 1),
        }


def run(plan: Plan) -> Result:
    """Run the demo. Raises `UsageError` for what the caller can put right, `StartFailed`, `DemoFailed`, `Problem`."""
    started = time.monotonic()
    layout = Layout(plan.directory.resolve(), plan.port, plan.pages, plan.sealed)
    _require_pages(layout)
    named = dataset.locate(plan.data, plan.declared)
    check_weights(plan.weights)
    _require_room(layout, plan, named)
    folder = named or _draw(layout, plan)
    with output.spinner("looking at the pictures"):
        found = dataset.check(folder, 0, plan.declared)
    sites = [Site(item.site.removeprefix("collection:"), item.site) for item in found.sites]
    supervisor.require_free(layout.ports(len(sites)))
    _say_what_is_used(plan, found, folder)
    with output.spinner("making keys"):
        addresses = make_keys(layout, len(sites))
    write_connection(layout)
    processes = layout.processes(addresses["admin"], folder.resolve(), sites, plan.threads, plan.declared)
    (layout.directory / "redis").mkdir(exist_ok=True)
    stack = Supervisor(layout)
    try:
        admin = _start(stack, processes, addresses, layout)
        result = _train(plan, layout, admin, stack, found, folder, started)
        (layout.directory / "report.json").write_text(json.dumps(result.report(), indent=2) + "\n")
    except BaseException:
        stack.stop()
        raise
    if plan.keep:
        _say_what_is_kept(layout)
    else:
        with output.spinner("stopping everything"):
            stack.stop()
    return result


def _require_pages(layout: Layout) -> None:
    """See that the pages were built. Raises `UsageError`."""
    pages = layout.pages
    if pages is not None and not ((pages / "index.html").is_file() and headers_of(pages).is_file()):
        raise UsageError(f"there are no pages in {pages}; build them with 'make pages'")


def _require_room(layout: Layout, plan: Plan, data: Path | None) -> None:
    """Empty the stack's folder. Raises `UsageError` where another stack runs in it or the disk is too full."""
    if supervisor.running(layout.directory):
        raise UsageError("a demo that was kept is still running; stop it with 'make demo-stop'")
    if layout.directory.exists() and not (layout.directory / "keys").exists() and any(layout.directory.iterdir()):
        raise UsageError(f"{layout.directory} holds something that is no demo; name another folder")
    if data is not None and layout.directory in (data.resolve(), *data.resolve().parents):
        raise UsageError("the data lie inside the demo's own folder, which is emptied; move them")
    shutil.rmtree(layout.directory, ignore_errors=True)
    layout.directory.mkdir(parents=True)
    (layout.directory / "keys").mkdir(mode=0o700)
    free, needed = shutil.disk_usage(layout.directory).free, disk_bytes(plan)
    if free < needed:
        raise UsageError(
            f"{free / 1e9:.1f} GB are free in {layout.directory}, {needed / 1e9:.1f} GB are needed; make room"
        )


def disk_bytes(plan: Plan) -> float:
    """Free disk a run needs at most: updates at nodes and in the store, models at nodes and in the store, the rest."""
    updates = 2 * SITES * plan.rounds
    models = (SITES + 2) * (plan.rounds + 1)
    return MODEL_BYTES[plan.architecture] * (updates + models) + 0.5e9


def _draw(layout: Layout, plan: Plan) -> Path:
    folder = layout.directory / "drawn"
    what = "lesions" if plan.declared is None else "pictures"
    with output.spinner(f"drawing {plan.drawn_images} {what}"):
        dataset.draw(folder, plan.drawn_images, plan.seed, plan.declared)
    return folder


def _say_what_is_used(plan: Plan, found: dataset.DatasetReport, folder: Path) -> None:
    output.err.print(f"pictures: {found.source}, {found.images} images in {folder}", markup=False)
    for item in found.sites:
        name = item.site.removeprefix("collection:")
        output.err.print(f"  {name}: {item.training_images} to train on, {item.held_out_images} held out", markup=False)
    output.err.print(f"lesion overlap between training and held-out, over all sites: {found.overlapping_lesions}")
    cap, held_out = plan.local.max_images, plan.evaluation.max_images
    output.err.print(
        f"caps: {cap or 'no'} training images a site and round, {held_out or 'no'} held-out images a site; "
        f"inputs of {plan.local.image_size} × {plan.local.image_size} pixels"
    )


def _start(stack: Supervisor, processes: list[Process], addresses: dict[str, str], layout: Layout) -> Client:
    with output.spinner(f"starting {len(processes)} processes (logs in {layout.directory / 'logs'})"):
        stack.start(processes)
        services = [process for process in processes if not process.name.startswith("node-")]
        stack.await_ready(services, START_SECONDS, lambda name: output.err.print(f"  {name} is up"))
    admin = Client(Connection(Endpoints.read(layout.connection_file)))
    with output.spinner("enrolling: the administrator signs every role"):
        enrol(admin, addresses)
    nodes = sum(name.startswith("node-") for name in addresses)
    with output.spinner(f"waiting for {nodes} hospitals"):
        deadline = time.monotonic() + START_SECONDS
        while len(admin.nodes()) < nodes:
            stack.check()
            if time.monotonic() > deadline:
                raise DemoFailed(f"only {len(admin.nodes())} of {nodes} hospitals registered in time")
            time.sleep(0.2)
    return admin


def _train(
    plan: Plan,
    layout: Layout,
    admin: Client,
    stack: Supervisor,
    found: dataset.DatasetReport,
    folder: Path,
    started: float,
) -> Result:
    with output.spinner("preparing the initial weights"):
        classification = plan.declaration.classification
        classes = len(classification.classes)
        initial = initial_weights(admin, plan.architecture, plan.weights, plan.seed, classes)
    output.err.print(f"initial weights: {initial.origin}", markup=False)
    quorum = len(found.sites)
    spec = JobSpec(
        name="demo",
        architecture=plan.architecture,
        initial=initial.digest,
        strategy=plan.strategy,
        rounds=plan.rounds,
        quorum=quorum,
        deadline_seconds=1800,
        seed=plan.seed,
        local=plan.local,
        evaluation=plan.evaluation,
        recording=plan.recording,
        secure=plan.secure,
        classification=classification,
        calibrate=plan.strategy.name not in OWN_TENSORS,
    )
    job = watch(admin, admin.create_job(spec))
    stack.check()
    output.rounds_table(job, console=plan.console)
    output.calibration(job, console=plan.console)
    if job.phase is not Phase.FINISHED:
        raise DemoFailed(f"the job {job.phase.value}: {job.detail}")
    transactions = admin.transactions(job.id)
    output.table(
        "transactions",
        ("block", "function", "round", "gas", "ms", "transaction"),
        [
            (
                str(item.block),
                item.function,
                "" if item.round is None else str(item.round),
                str(item.gas),
                f"{item.latency * 1000:.0f}",
                item.transaction,
            )
            for item in sorted(transactions, key=lambda item: item.block)
        ],
        console=plan.console,
    )
    logged = [update.update.hospital for item in admin.ledger_job(job.id).rounds for update in item.updates]
    picture = dataset.picture(folder, layout.directory / "picture.png", plan.declared)
    endpoints = Endpoints.read(layout.connection_file)
    keystore = layout.keystore("clinician")
    clinician = Client(
        Connection(
            endpoints.model_copy(update={"keystore": keystore, "password_file": keystore.with_suffix(".password")})
        )
    )
    prediction = clinician.predict(picture)
    plan.console.print(f"a clinician asks about {picture.name}:", markup=False)
    print_prediction(prediction, console=plan.console)
    verdict = run_verification(admin, job.id, None)
    print_verdict(verdict, console=plan.console)
    return Result(
        plan,
        found.source,
        found.images,
        found.overlapping_lesions,
        initial,
        job,
        [{**item.model_dump(mode="json"), "latency": item.latency} for item in transactions],
        len(logged),
        len(set(logged)),
        picture,
        prediction,
        verdict,
        time.monotonic() - started,
    )


def _say_what_is_kept(layout: Layout) -> None:
    output.err.print(f"kept running: connection file {layout.connection_file}", markup=False)
    if layout.pages is not None:
        key = layout.keystore("admin")
        output.err.print(f"the pages: {layout.url('front')}/", markup=False)
        output.err.print(
            f"  to sign in there: in MetaMask, Import account, type JSON file, {key} with the password in "
            f"{key.with_suffix('.password').name} beside it (clinician and auditor likewise)",
            markup=False,
        )
    for service in SERVICES:
        address = f"{layout.url('front')}/api/{service}" if layout.pages else layout.url(service)
        output.err.print(f"  {service}: {address}/openapi.json", markup=False)
    output.err.print("stop it with 'make demo-stop'")
