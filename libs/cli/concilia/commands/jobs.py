"""`concilia job`: create, watch, list, show, pause, resume, stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer
from concilia_kit.classification import LESIONS
from concilia_kit.problems import Problem
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.jobs import SENSITIVITY, JobSpec, JobView, Phase, Recording, Schedule
from concilia_kit.wire.masking import SecureAggregation
from concilia_kit.wire.models import InitialModel, InitialModelRequest, Weights
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.strategy import StrategyName
from concilia_kit.wire.training import Architecture, ArchitectureName, Balance, Evaluation, LocalTraining, Optimizer

from concilia import output
from concilia.client import Client
from concilia.commands.options import (
    ADAPTER_HELP,
    ARCHITECTURE_HELP,
    CLASSIFICATION_HELP,
    DEFAULT_CONFIG,
    ENCODING_HELP,
    RECORDING_HELP,
    SECURE,
    SECURE_HELP,
    STRATEGY_HELP,
    Config,
    Json,
    adapter_of,
    architecture_of,
    client,
    declared,
    encoding_of,
    guarded,
    options_checked,
    strategy_of,
)
from concilia.connection import UsageError

app = typer.Typer(help="Training jobs.", no_args_is_help=True)

ENDED = frozenset({Phase.FINISHED, Phase.FAILED, Phase.STOPPED})

JobArgument = Annotated[str, typer.Argument(help="the job's id or its beginning, or 'latest'")]


def check_weights(weights: str) -> Path | None:
    """The file that weights name, None for 'imagenet' and 'random'. Raises `UsageError` where it cannot be one."""
    if weights in {Weights.IMAGENET.value, Weights.RANDOM.value}:
        return None
    path = Path(weights)
    if not path.is_file():
        raise UsageError(f"{weights} is neither 'imagenet', 'random' nor a safetensors file")
    try:
        TensorFile.open(path)
    except MalformedFile as error:
        raise UsageError(f"{weights} is no safetensors file: {error}") from error
    return path


def initial_weights(
    to: Client,
    architecture: ArchitectureName,
    weights: str,
    seed: int,
    classes: int = len(LESIONS.classes),
    adapter: str | None = None,
) -> InitialModel:
    """Have initial weights made from 'imagenet', 'random' or a safetensors file, and an adapter over them where one is
    asked for. Raises `UsageError`, `Problem`."""
    path = check_weights(weights)
    request = InitialModelRequest(
        architecture=architecture,
        weights=Weights.FILE if path else Weights(weights),
        file=to.upload(path) if path else None,
        seed=seed,
        classes=classes,
        adapter=adapter,
    )
    try:
        return to.initial_model(request)
    except Problem as problem:
        if problem.problem_code.startswith("weights_"):
            raise UsageError(f"--weights {weights}: {problem.detail}") from problem
        if problem.problem_code == "architecture_unavailable":
            raise UsageError(f"--architecture {architecture}: {problem.detail}") from problem
        raise


def watch(to: Client, job: JobView) -> JobView:
    """Show a job until it ends; returns it as it ended."""
    sites = {node.address: node.registration.site for node in to.nodes()}
    with output.JobWatch(sites) as view:
        while True:
            view.show(job)
            if job.phase in ENDED:
                return job
            time.sleep(0.5)
            job = to.job(job.id)


@app.command("create")
@guarded
def create(
    name: Annotated[str, typer.Option(help="what people call it")] = "lesions",
    classification: Annotated[Path | None, typer.Option(help=CLASSIFICATION_HELP)] = None,
    architecture: Annotated[str, typer.Option(help=ARCHITECTURE_HELP)] = Architecture.RESNET50.value,
    weights: Annotated[str, typer.Option(help="'imagenet', 'random' or a safetensors file")] = "imagenet",
    adapter: Annotated[str | None, typer.Option(help=ADAPTER_HELP)] = None,
    strategy: Annotated[str, typer.Option(help=STRATEGY_HELP)] = StrategyName.FEDAVG.value,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="the strategy's KEY=VALUE, as hostile=0.3 or mixing=bucketing")
    ] = None,
    proximal_mu: Annotated[float, typer.Option(help="FedProx's mu")] = 0.01,
    rounds: Annotated[int, typer.Option(help="rounds at most")] = 3,
    quorum: Annotated[int, typer.Option(help="updates a round needs")] = 1,
    deadline: Annotated[int, typer.Option(help="seconds a round may last")] = 3600,
    over_selection: Annotated[
        float | None, typer.Option(help="ask so many times the quorum, and close with the first that suffice")
    ] = None,
    target: Annotated[
        float | None, typer.Option(help="pooled balanced accuracy, or other headline figure, that ends the job")
    ] = None,
    recording: Annotated[Recording, typer.Option(help=RECORDING_HELP)] = Recording.EACH,
    encoding: Annotated[str, typer.Option(help=ENCODING_HELP)] = "none",
    evaluate_every: Annotated[int, typer.Option(help="rounds from one evaluation to the next")] = 1,
    flips: Annotated[bool, typer.Option(help="look at pictures from all sides, and take the mean")] = False,
    own_shares: Annotated[
        bool, typer.Option(help="evaluate pictures by how often each class comes at their hospital")
    ] = False,
    calibrate: Annotated[
        bool, typer.Option(help="find a temperature and thresholds on held-out lesions for the published model")
    ] = False,
    sensitivity: Annotated[
        float, typer.Option(help="share of the critical class that its threshold is to find")
    ] = SENSITIVITY,
    epochs: Annotated[int, typer.Option(help="local epochs a round")] = 1,
    batch_size: Annotated[int, typer.Option(help="local batch size")] = 32,
    learning_rate: Annotated[float, typer.Option(help="local learning rate")] = 1e-3,
    image_size: Annotated[int, typer.Option(help="side of the network's input in pixels")] = 224,
    max_images: Annotated[int | None, typer.Option(help="training images a site and round at most")] = None,
    balance: Annotated[Balance, typer.Option(help="how class imbalance is met")] = Balance.LOSS,
    optimizer: Annotated[Optimizer, typer.Option(help="what takes local steps")] = Optimizer.SGD,
    weight_decay: Annotated[float, typer.Option(help="what weights are drawn to nothing by")] = 1e-4,
    label_smoothing: Annotated[float, typer.Option(help="share of a label spread over all classes")] = 0.0,
    mixup: Annotated[float, typer.Option(help="alpha by which pairs of images are mixed; 0: none are")] = 0.0,
    whole_job: Annotated[
        bool, typer.Option(help="one cosine of the learning rate over all rounds, in place of one a round")
    ] = False,
    warm_up: Annotated[float, typer.Option(help="share of the first round over which the rate rises")] = 0.0,
    head_rounds: Annotated[int, typer.Option(help="first rounds that train the last layer alone")] = 0,
    statistics_rounds: Annotated[
        int | None,
        typer.Option(help="rounds after which batch normalisation keeps the model's statistics (default: never)"),
    ] = None,
    secure: Annotated[bool, typer.Option("--secure", help=SECURE_HELP)] = False,
    secure_threshold: Annotated[
        float, typer.Option(help="share of a secure round's hospitals that it cannot be unmasked without")
    ] = SECURE.threshold,
    secure_group: Annotated[
        int | None, typer.Option(help="fewest hospitals of a sum, where a robust strategy goes by groups' sums")
    ] = None,
    secure_norm: Annotated[
        float | None, typer.Option(help="longest change (L2) that a hospital's node lets its masked update make")
    ] = None,
    secure_bound: Annotated[
        float, typer.Option(help="largest change of a value in a masked update, in multiples of its tensor's largest")
    ] = SECURE.bound,
    secure_seconds: Annotated[
        int, typer.Option(help="until a stage of the masking goes on without those that are not heard of")
    ] = SECURE.stage_seconds,
    dp_noise: Annotated[
        float | None, typer.Option(help="train with differential privacy: noise in multiples of the clipping norm")
    ] = None,
    dp_clip: Annotated[float, typer.Option(help="clipping norm of a lesion's gradient")] = 1.0,
    dp_delta: Annotated[float, typer.Option(help="delta at which epsilon is told")] = 1e-5,
    seed: Annotated[int, typer.Option(help="seed of everything random")] = 0,
    follow: Annotated[bool, typer.Option("--watch", help="stay and watch")] = False,
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Create a job; it starts as soon as enough hospitals are there."""
    mu = [f"proximal_mu={proximal_mu}"] if strategy == StrategyName.FEDPROX else []
    chosen = strategy_of(strategy, [*mu, *(settings or [])])
    told_apart, kind = declared(classification).classification, adapter_of(adapter)
    network = architecture_of(architecture)
    to = client(config)
    with options_checked():
        local = LocalTraining(
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            image_size=image_size,
            max_images=max_images,
            balance=balance,
            optimizer=optimizer,
            weight_decay=weight_decay,
            label_smoothing=label_smoothing,
            mixup=mixup,
        )
        spec = JobSpec(
            name=name,
            architecture=network,
            initial="0" * 64,
            strategy=chosen,
            rounds=rounds,
            quorum=quorum,
            deadline_seconds=deadline,
            over_selection=over_selection,
            target=target,
            seed=seed,
            local=local,
            evaluation=Evaluation(flips=flips),
            evaluate_every=evaluate_every,
            recording=recording,
            encoding=encoding_of(encoding),
            own_shares=own_shares,
            calibrate=calibrate,
            sensitivity=sensitivity,
            classification=told_apart,
            schedule=Schedule(
                whole_job=whole_job, warm_up=warm_up, head_rounds=head_rounds, statistics_rounds=statistics_rounds
            ),
            secure=SecureAggregation(
                threshold=secure_threshold,
                group=secure_group,
                norm=secure_norm,
                bound=secure_bound,
                stage_seconds=secure_seconds,
            )
            if secure
            else None,
            privacy=None if dp_noise is None else Privacy(noise=dp_noise, clip=dp_clip, delta=dp_delta),
        )
    with output.spinner("preparing the initial weights"):
        initial = initial_weights(to, network, weights, seed, len(told_apart.classes), kind)
    output.err.print(f"initial weights: {initial.origin}", markup=False)
    spec = spec.model_copy(update={"initial": initial.digest})
    job = to.create_job(spec)
    _print(watch(to, job) if follow else job, as_json)


@app.command("watch")
@guarded
def watch_command(
    job: JobArgument = "latest",
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Watch a job until it ends; exit code 1 unless it finished."""
    to = client(config)
    ended = watch(to, to.find_job(job))
    _print(ended, as_json)
    if ended.phase is not Phase.FINISHED:
        raise typer.Exit(1)


@app.command("show")
@guarded
def show(
    job: JobArgument = "latest",
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Show a job's rounds."""
    _print(client(config).find_job(job), as_json)


@app.command("list")
@guarded
def list_jobs(config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """List all jobs, newest first."""
    jobs = client(config).jobs()
    if as_json:
        output.as_json(jobs)
        return
    output.table(
        None,
        ("job", "name", "architecture", "strategy", "encoding", "phase", "round", "detail"),
        [
            (
                item.id[:12],
                item.spec.name,
                str(item.spec.architecture),
                str(item.spec.strategy.name),
                str(item.spec.encoding),
                item.phase.value,
                f"{item.round}/{item.spec.rounds}",
                item.detail,
            )
            for item in jobs
        ],
    )


@app.command("pause")
@guarded
def pause(job: JobArgument, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Pause a job: its open round ends as usual, and no other is opened until it is resumed."""
    _order(config, job, Client.pause_job, as_json, {"paused": True}, "ends its open round and opens no other")


@app.command("resume")
@guarded
def resume(job: JobArgument, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Have a paused job go on."""
    _order(config, job, Client.resume_job, as_json, {"paused": False}, "goes on")


@app.command("stop")
@guarded
def stop(job: JobArgument, config: Config = DEFAULT_CONFIG, as_json: Json = False) -> None:
    """Stop a job; an open round is given up on the ledger."""
    _order(config, job, Client.stop_job, as_json, {"stopping": True}, "is asked to stop")


def _order(
    config: Path,
    job: str,
    give: Callable[[Client, str], None],
    as_json: bool,
    state: dict[str, bool],
    words: str,
) -> None:
    """Give a job an order, and say what comes of it."""
    to = client(config)
    found = to.find_job(job)
    give(to, found.id)
    if as_json:
        output.as_json({"job": found.id, **state})
    else:
        output.out.print(f"job {found.id[:12]}… {words}")


def _print(job: JobView, as_json: bool) -> None:
    if as_json:
        output.as_json(job)
        return
    output.rounds_table(job)
    output.calibration(job)
    output.out.print(f"job {job.id} · {job.detail or job.phase.value}", markup=False)
    if job.model:
        output.out.print(f"model {job.model}")
