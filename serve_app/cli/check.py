"""`rayconteur config check`: what is wrong in a `serve_config.yaml`, and on which line, before anything starts."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from pydantic import ValidationError

from serve_app.cli.terminal import err, fail, out
from serve_app.config import AppConfig
from serve_app.generation.settings import UserConfig
from serve_app.types import Json

IMPORT_PATH = "deployments.app:build_app"
GATEWAY = "Gateway"

# Ray's own schema, in a process of its own: only deployments/ imports Ray.
_RAY_CHECK = """
import json, sys
from pydantic import ValidationError
from ray.serve.schema import DeploymentSchema, ServeApplicationSchema, ServeDeploySchema
wanted = json.load(sys.stdin)
try:
    ServeDeploySchema.model_validate(wanted)
except ValidationError as error:
    problems = [[list(each["loc"]), each["msg"]] for each in error.errors(include_url=False, include_context=False)]
except ValueError as error:
    problems = [[[], str(error)]]
else:
    # Ray ignores a key that it does not know, so a misspelt number would go unnoticed.
    unknown = [[key] for key in wanted if key not in ServeDeploySchema.model_fields]
    for i, each in enumerate(wanted["applications"]):
        unknown += [["applications", i, key] for key in each if key not in ServeApplicationSchema.model_fields]
        for j, part in enumerate(each.get("deployments") or []):
            place = ["applications", i, "deployments", j]
            unknown += [place + [key] for key in part if key not in DeploymentSchema.model_fields]
    problems = [[where, "Ray Serve has no such setting"] for where in unknown]
print("problems:" + json.dumps(problems))
"""

Location = list[str | int]


class Problem:
    """One thing that is wrong, and where."""

    def __init__(self, location: Location, message: str) -> None:
        self.location = location
        self.message = message.removeprefix("Value error, ").strip()

    def __str__(self) -> str:
        where = ""
        for step in self.location:
            where += f"[{step}]" if isinstance(step, int) else f".{step}" if where else step
        return f"{where}: {self.message}" if where else self.message


def check(config: Annotated[Path, typer.Argument(help="The file to look at.")] = Path("serve_config.yaml")) -> None:
    """Check the file against Ray Serve's schema and the application's."""
    wanted = read_yaml(config)
    problems = app_problems(wanted) + ray_problems(wanted)
    if not problems:
        out.print(f"{config} is valid.", markup=False)
        return
    lines = _Lines(config.read_text())
    for problem in problems:
        err.print(f"{config}:{lines.find(problem.location)}: {problem}", style="red", markup=False)
    fail(f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in {config}")


def read_yaml(config: Path) -> Json:
    try:
        wanted = yaml.safe_load(config.read_text())
    except OSError as error:
        fail(f"{config} cannot be read ({error.strerror}): name a file such as serve_config.yaml")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        fail(f"{config} is not YAML: {' '.join(str(error).split())}")
    if not isinstance(wanted, dict) or not isinstance(wanted.get("applications"), list):
        fail(f"{config} has no list 'applications': see the repository's serve_config.yaml")
    return wanted


def app_configs(wanted: Json) -> list[AppConfig]:
    """The valid `args` of our own applications."""
    return [AppConfig.model_validate(args) for _, args in _our_args(wanted)]


def app_problems(wanted: Json) -> list[Problem]:
    problems = []
    for location, args in _our_args(wanted):
        try:
            problems += _missing_deployments(AppConfig.model_validate(args), wanted, location)
        except ValidationError as error:
            problems += [Problem([*location, *each["loc"]], each["msg"]) for each in error.errors()]
    for location, user_config in _our_user_configs(wanted):
        try:
            UserConfig.model_validate(user_config)
        except ValidationError as error:
            problems += [Problem([*location, *each["loc"]], each["msg"]) for each in error.errors()]
    return problems


def _missing_deployments(config: AppConfig, wanted: Json, location: Location) -> list[Problem]:
    """Ray would give a generator without an entry one CPU, no GPU and an unbounded queue."""
    deployments = wanted["applications"][location[1]].get("deployments") or []
    there = {each.get("name") for each in deployments if isinstance(each, dict)}
    return [
        Problem([*location[:2], "deployments"], f"the model {model_id!r} needs an entry with the name {name!r}")
        for model_id, name in config.generator_deployments.items()
        if name not in there and model_id != config.generator.model_id
    ]


def ray_problems(wanted: Json) -> list[Problem]:
    command = [sys.executable, "-c", _RAY_CHECK]
    # default=str: YAML has dates, and JSON has not.
    asked = subprocess.run(command, input=json.dumps(wanted, default=str), check=False, capture_output=True, text=True)
    answers = [line for line in asked.stdout.splitlines() if line.startswith("problems:")]
    if not answers:
        fail(f"Ray's schema could not be asked: {asked.stderr.strip()[-500:]}")
    return [Problem(location, message) for location, message in json.loads(answers[-1].removeprefix("problems:"))]


def _our_args(wanted: Json) -> list[tuple[Location, Any]]:
    # Any: whatever the YAML holds there.
    return [
        (["applications", index, "args"], application.get("args") or {})
        for index, application in enumerate(wanted["applications"])
        if isinstance(application, dict) and application.get("import_path") == IMPORT_PATH
    ]


def _our_user_configs(wanted: Json) -> list[tuple[Location, Any]]:
    return [
        ([*location[:2], "deployments", index, "user_config"], deployment.get("user_config") or {})
        for location, _ in _our_args(wanted)
        for index, deployment in enumerate(wanted["applications"][location[1]].get("deployments") or [])
        if isinstance(deployment, dict) and deployment.get("name") == GATEWAY
    ]


class _Lines:
    """On which line of a YAML text a location is; that of its nearest parent where it is absent."""

    def __init__(self, text: str) -> None:
        self._root = yaml.compose(text, Loader=yaml.SafeLoader)

    def find(self, location: Location) -> int:
        node, line = self._root, 1
        for step in location:
            if isinstance(node, yaml.MappingNode):
                found = next(((key, value) for key, value in node.value if key.value == str(step)), None)
                if found is None:
                    break
                line, node = found[0].start_mark.line + 1, found[1]
            elif isinstance(node, yaml.SequenceNode) and isinstance(step, int) and step < len(node.value):
                node = node.value[step]
                line = node.start_mark.line + 1
            else:
                break
        return line
