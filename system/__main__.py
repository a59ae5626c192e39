"""The command line: `rtb COMMAND`, also `python -m system COMMAND`."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported: processes share the cores

import argparse
import re
import sys
import traceback
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NoReturn

from system.errors import UserError
from system.log import problems_are_heard

__all__ = ["main"]

EXACT = ("start", "populations", "chains", "r_hat", "max_seconds")  # options of `rtb sample --exact`
NO_CONFIG = "-"  # in the place of the configuration: that of the run to start from


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; 0 on success, 2 when the user can mend it (one line on stderr), 130 when interrupted."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["train"] and given[1:2] and given[1].startswith("--") and "--init" in given:
        given.insert(1, NO_CONFIG)  # or argparse would take the value of some option for the configuration
    try:
        known, rest = _parser().parse_known_args(given)
        if rest and not (known.overrides or (known.command == "sample" and known.exact)):
            command = " ".join([known.command, *([known.action] if known.command == "prior" else [])])
            raise UserError(f"unknown argument {rest[0]!r} of `rtb {command}`; see `rtb {command} --help`")
        with nullcontext() if known.quiet else problems_are_heard():
            return int(known.run(known, rest) or 0)
    except UserError as error:
        if "--debug" in given:
            traceback.print_exc()
        sys.stderr.write(f"rtb: error: {error}\n")
        return 2
    except KeyboardInterrupt as interrupt:
        sys.stderr.write(f"rtb: {str(interrupt) or 'interrupted'}\n")
        return 130


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, as all errors of users are said."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see `{self.prog} --help`")


def _row_or_file(text: str) -> int | Path:
    """A number is a row of the problem's measurements, all else a file."""
    return int(text) if re.fullmatch(r"-?\d+", text) else Path(text)


def _parser() -> argparse.ArgumentParser:
    shared = _Parser(add_help=False)
    shared.add_argument("--debug", action="store_true", help="show the traceback of an error")
    shared.add_argument("--quiet", action="store_true", help="show no progress")
    parser = _Parser(prog="rtb", description="Posterior samples under a diffusion prior, checked.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, text: str, run: object, *, help_flag: bool = True) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[shared], add_help=help_flag)
        command.set_defaults(run=run, overrides=name == "train")
        return command

    measurement: dict[str, Any] = {"type": _row_or_file, "default": 0, "metavar": "ROW|FILE"}
    measurement["help"] = "row of the problem's measurements (default 0), or a .npy or .npz file with another one"
    train = add("train", "train a posterior from a configuration", _train, help_flag=False)
    train.add_argument("config", type=Path, nargs="?", help="YAML file; then any --section.key value")
    train.add_argument("--run", type=Path, dest="directory", help="run directory (default: runs/NAME-N)")
    train.add_argument("--cluster", metavar="ADDRESS", help="run on this Ray cluster ('auto': the one at hand)")
    train.add_argument("--init", type=Path, metavar="RUN", help="run whose weights training starts from")
    train.add_argument("--measurement", type=Path, metavar="FILE", help="measurement to train at (.npy or .npz)")
    train.add_argument("-h", "--help", action="store_true", dest="help", help="show all configuration keys")
    resume = add("resume", "go on with an interrupted run", _resume)
    resume.add_argument("directory", type=Path, metavar="RUN")
    resume.add_argument("--cluster", metavar="ADDRESS", help="run on this Ray cluster")
    sample = add("sample", "draw posterior samples from a run", _sample)
    sample.add_argument("directory", type=Path, metavar="RUN", help="run directory; with --exact also a YAML file")
    sample.add_argument("--num", type=int, default=1_000, help="number of samples (default 1000)")
    sample.add_argument("--seed", type=int, default=0, help="seed of the draw (default 0)")
    sample.add_argument("--measurement", **measurement)
    sample.add_argument(
        "--output", type=Path, help="npz file (default: RUN/samples.npz or RUN/exact.npz, which is replaced)"
    )
    sample.add_argument(
        "--corrected", type=int, default=0, metavar="M", help="also M samples drawn among them by weight and moved"
    )
    exact = sample.add_argument_group("exact posterior samples by path-space search, without training")
    exact.add_argument(
        "--exact", action="store_true", help="search until populations agree; exit code 1 if they do not"
    )
    exact.add_argument(
        "--start",
        metavar="prior|posterior",
        help="where populations start: a run's posterior is quicker (default prior)",
    )
    exact.add_argument("--populations", type=int, help="populations that never meet (default 4)")
    exact.add_argument("--chains", type=int, help="paths in each (default 256)")
    exact.add_argument("--r-hat", type=float, help="largest R^ that counts as mixed (default 1.01)")
    exact.add_argument("--max-seconds", type=float, help="stop then, mixed or not (default 600)")
    evaluate = add("evaluate", "evaluate a run's posterior again and rewrite its report", _evaluate)
    evaluate.add_argument("directory", type=Path, metavar="RUN")
    evaluate.add_argument("--num", type=int, help="number of trajectories (default: as configured)")
    evaluate.add_argument("--measurement", **(measurement | {"default": None, "help": "judge this row or file alone"}))
    problems = add("problems", "list the problems, or the options of one", _problems)
    problems.add_argument("name", nargs="?", help="a problem")
    problems.add_argument("--plugins", nargs="+", default=[], help="modules that register problems of yours")
    prior = add("prior", "priors at rest", None)
    actions = prior.add_subparsers(dest="action", required=True, metavar="ACTION")
    _add_prior_train(actions, shared)
    _add_prior_inspect(actions, shared)
    _add_prior_import(actions, shared)
    add("doctor", "check this machine", _doctor)
    return parser


def _add_prior_train(actions: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401  argparse keeps its class to itself
    text = "train a prior from a configuration"
    command = actions.add_parser("train", help=text, description=text, parents=[shared], add_help=False)
    command.set_defaults(run=_prior_train, overrides=True)
    command.add_argument("config", type=Path, nargs="?", help="YAML file; then any --section.key value")
    command.add_argument("--out", type=Path, metavar="DIR", help="run directory (default: runs/NAME-N)")
    command.add_argument("-h", "--help", action="store_true", dest="help", help="show all configuration keys")


def _add_prior_inspect(actions: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401
    text = "samples of a prior, its schedule, and the error of a finite number of steps"
    command = actions.add_parser("inspect", help=text, description=text, parents=[shared])
    command.set_defaults(run=_prior_inspect, overrides=False)
    command.add_argument("name", metavar="NAME|DIR", help="a prior that ships, or the folder of any")
    command.add_argument("--out", type=Path, metavar="DIR", help="folder for the figures (default: inspect-NAME)")
    command.add_argument("--steps", type=int, nargs="+", metavar="T", help="numbers of steps to compare")
    command.add_argument("--num-steps", type=int, help="steps of the chains that samples are drawn with (default 50)")
    command.add_argument("--schedule", help="theirs (default: vp-cosine-zero-snr, or own of an imported prior)")
    command.add_argument("--bound", type=float, help="on the discretisation error, nats per dimension (default 0.01)")
    command.add_argument("--data", type=Path, metavar="FILE", help=".npy or .npz of x to measure the error on")
    command.add_argument("--seed", type=int, default=0, help="seed of the draws (default 0)")
    command.add_argument("--plugins", nargs="+", default=[], help="modules that register networks of yours")


def _add_prior_import(actions: Any, shared: argparse.ArgumentParser) -> None:  # noqa: ANN401  argparse keeps its class to itself
    text = "a pretrained diffusion model of another library as a prior"
    command = actions.add_parser("import", help=text, description=text, parents=[shared])
    command.set_defaults(run=_prior_import, overrides=False)
    command.add_argument("source", type=Path, metavar="SOURCE", help="folder of the other library's files")
    command.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write the prior to")
    command.add_argument("--kind", help="diffusers, edm, flow or score-models (default: what SOURCE looks like)")
    command.add_argument("--shape", type=int, nargs="+", help="shape of x, where the files do not state it")
    command.add_argument("--data", type=Path, metavar="FILE", help=".npy or .npz of x to measure the error on")
    command.add_argument("--data-std", type=float, help="standard deviation of x (default: of --data, or as stated)")
    command.add_argument("--plugins", nargs="+", default=[], help="modules that register networks of yours")


def _train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    from system.config_file import changed, load_config
    from system.run import train, tuning_config

    if arguments.help:
        _train_help(arguments.config)
        return
    given = {"--init": arguments.init, "--measurement": arguments.measurement}
    overrides = [*overrides, *(word for key, path in given.items() if path for word in (key, str(path)))]
    if arguments.config is None:
        raise UserError("rtb train needs a configuration file, e.g. configs/experiments/digits_half.yaml")
    later = [word for word in overrides if word.endswith((".yaml", ".yml"))]
    if later and not arguments.config.exists():  # `rtb train --seed 3 CONFIG` takes the 3 for it
        raise UserError(f"the configuration comes before all options: rtb train {later[0]} --option value")
    if arguments.cluster is not None:
        overrides = [*overrides, "--runner", "ray", "--ray.address", arguments.cluster]
    if arguments.config == Path(NO_CONFIG):
        config = changed(tuning_config(arguments.init), overrides)
    else:
        config = load_config(arguments.config, overrides)
    _closing(train(config, arguments.directory, quiet=arguments.quiet), arguments.quiet)


def _train_help(path: Path | None) -> None:
    from system.flags import help_text

    sys.stdout.write(
        "rtb train CONFIG [--run DIR] [--cluster ADDRESS] [--quiet] [--debug] and any of these:\n"
        "rtb train --init RUN [--measurement FILE] ... goes on from RUN, as it was configured, at one measurement\n\n"
    )
    sys.stdout.write(help_text(path))


def _resume(arguments: argparse.Namespace, _: list[str]) -> None:
    from system.run import resume
    from system.train_prior import is_prior_run, prior_of, resume_prior

    if is_prior_run(arguments.directory):
        if arguments.cluster is not None:
            raise UserError("--cluster is for runs that train a posterior; a prior is trained in one process")
        prior = prior_of(resume_prior(arguments.directory, quiet=arguments.quiet))
        if not arguments.quiet:
            sys.stdout.write(f"{prior}\n")
        return
    run = resume(arguments.directory, cluster=arguments.cluster, quiet=arguments.quiet)
    _closing(run, arguments.quiet)


def _sample(arguments: argparse.Namespace, overrides: list[str]) -> int:
    import numpy as np
    import torch

    from evaluation import bounds
    from system.run import ended_diverged, sample
    from system.run_directory import RunDirectory

    if arguments.exact:
        if arguments.corrected:
            raise UserError("--corrected is for samples of a learned posterior; those of --exact need no correction")
        return _sample_exactly(arguments, overrides)
    for name in EXACT:
        if getattr(arguments, name) is not None:
            raise UserError(f"--{name.replace('_', '-')} is for `rtb sample --exact`")
    if ended_diverged(RunDirectory.open(arguments.directory)):
        sys.stderr.write(
            f"rtb: warning: the run diverged, and these are not posterior samples: {arguments.directory}\n"
        )
    path = sample(
        arguments.directory,
        arguments.num,
        arguments.seed,
        arguments.output,
        arguments.measurement,
        corrected=arguments.corrected,
    )
    with np.load(path) as file:
        log_weight, ancestor = torch.from_numpy(file["log_weight"]), file.get("ancestor")
    share, bound = bounds.effective_sample_size(log_weight), bounds.elbo(log_weight)
    sys.stdout.write(f"{arguments.num} samples: {path} (ELBO {bound:.2f}, effective sample size {100 * share:.2g} %)\n")
    if ancestor is not None:
        count = len(np.unique(ancestor))
        sys.stdout.write(
            f"{len(ancestor)} corrected, made of {count} of them: the fewer, the less they tell of modes\n"
        )
    elif arguments.corrected:
        sys.stderr.write("rtb: warning: no path has any weight, so none could be corrected\n")
    return 0


def _sample_exactly(arguments: argparse.Namespace, overrides: list[str]) -> int:
    from system.exact import ExactConfig
    from system.run import sample_exact

    try:
        given = {name: getattr(arguments, name) for name in EXACT if getattr(arguments, name) is not None}
        config = ExactConfig(num_samples=arguments.num, seed=arguments.seed, **given)
    except ValueError as error:
        raise UserError(str(error)) from None
    if overrides and arguments.directory.is_dir():
        raise UserError(f"{overrides[0]} would change the problem of a finished run; give a configuration instead")
    path, result = sample_exact(
        arguments.directory, overrides, config, arguments.output, arguments.measurement, quiet=arguments.quiet
    )
    sys.stdout.write("\n".join([*result.lines(), f"{len(result.samples)} samples: {path}", ""]))
    return 0 if result.mixed else 1


def _evaluate(arguments: argparse.Namespace, _: list[str]) -> None:
    from system.run import evaluate_run

    _closing(evaluate_run(arguments.directory, arguments.num, arguments.measurement), arguments.quiet)


def _problems(arguments: argparse.Namespace, _: list[str]) -> None:
    import inspect

    from envs import problem_names
    from envs.registry import problem_factory
    from system.config_file import import_plugins

    import_plugins(arguments.plugins)
    try:
        factories = {name: problem_factory(name) for name in ([arguments.name] if arguments.name else problem_names())}
    except ValueError as error:
        raise UserError(str(error)) from None
    width = max(map(len, factories))
    for name, factory in factories.items():
        about = (inspect.getdoc(factory) or "").split("\n")
        sys.stdout.write(f"{name:{width}}  {about[0]}\n")
        if arguments.name:
            for parameter in inspect.signature(factory).parameters.values():
                sys.stdout.write(f"  --problem.{parameter.name.replace('_', '-')} ({parameter.default})\n")
            module = inspect.getdoc(inspect.getmodule(factory)) or ""
            for text in ("\n".join(about[1:]).strip(), module):  # what the options mean, and the equation
                sys.stdout.write(f"\n{text}\n" if text else "")


def _prior_train(arguments: argparse.Namespace, overrides: list[str]) -> None:
    import shlex

    from system.config_file import load_config
    from system.prior_config import PriorConfig
    from system.train_prior import prior_of, train_prior

    if arguments.help:
        from system.flags import help_text

        sys.stdout.write("rtb prior train CONFIG [--out DIR] [--quiet] [--debug] and any of these:\n\n")
        sys.stdout.write(help_text(arguments.config, PriorConfig))
        return
    if arguments.config is None:
        raise UserError("rtb prior train needs a configuration file, e.g. configs/priors/digits.yaml")
    config = load_config(arguments.config, overrides, PriorConfig)
    command = shlex.join([*PriorConfig.PROGRAM.split()[:-1], str(arguments.config), *overrides])
    run = train_prior(config, arguments.out, command=command, quiet=arguments.quiet)
    if not arguments.quiet:
        sys.stdout.write(f"{prior_of(run)}\n")


def _prior_inspect(arguments: argparse.Namespace, _: list[str]) -> None:
    from system.inspect_prior import inspect_prior

    given = {
        key: getattr(arguments, key) for key in ("steps", "num_steps", "bound") if getattr(arguments, key) is not None
    }
    found = inspect_prior(
        arguments.name,
        schedule=arguments.schedule,
        data=arguments.data,
        seed=arguments.seed,
        plugins=arguments.plugins,
        **given,
    )
    folder = arguments.out or Path(f"inspect-{Path(arguments.name).resolve().name}")
    folder.mkdir(parents=True, exist_ok=True)
    for picture in found.pictures:
        (folder / f"{picture.name}.png").write_bytes(picture.png)
    if not arguments.quiet:
        names = ", ".join(f"{picture.name}.png" for picture in found.pictures)
        sys.stdout.write("\n".join([*found.lines, f"{names}: {folder}", ""]))


def _prior_import(arguments: argparse.Namespace, _: list[str]) -> None:
    from system.import_prior import import_command

    lines = import_command(
        arguments.source,
        arguments.out,
        kind=arguments.kind,
        shape=arguments.shape,
        data=arguments.data,
        data_std=arguments.data_std,
        plugins=arguments.plugins,
    )
    if not arguments.quiet:
        sys.stdout.write("\n".join([*lines, ""]))


def _doctor(arguments: argparse.Namespace, _: list[str]) -> int:
    from system.doctor import examine, render

    checks = examine()
    sys.stdout.write(render(checks) + "\n")
    return 2 if any(check.ok is False for check in checks) else 0


def _closing(run: object, quiet: bool) -> None:
    from system.run import closing_lines
    from system.run_directory import RunDirectory

    assert isinstance(run, RunDirectory)
    if not quiet:
        sys.stdout.write(closing_lines(run))


if __name__ == "__main__":
    sys.exit(main())
