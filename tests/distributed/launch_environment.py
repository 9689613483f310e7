"""Prints, as JSON, what `accelerate launch` would add to the environment of the processes that it starts."""

import json
import os
import sys

from accelerate.commands import launch
from accelerate.utils.launch import (
    prepare_deepspeed_cmd_env,
    prepare_multi_gpu_env,
    prepare_simple_launcher_cmd_env,
)

if __name__ == "__main__":
    arguments = launch.launch_command_parser().parse_args(sys.argv[1:])
    arguments, defaults, mixed = launch._validate_launch_command(arguments)
    if arguments.use_deepspeed:
        names = [*defaults.deepspeed_config, *(["mixed_precision"] if mixed else [])]
        arguments.deepspeed_fields_from_accelerate_config = ",".join(names)
        environment = prepare_deepspeed_cmd_env(arguments)[1]
    elif arguments.num_processes == 1:
        environment = prepare_simple_launcher_cmd_env(arguments)[1]
    else:
        environment = prepare_multi_gpu_env(arguments)
    added = {name: value for name, value in environment.items() if os.environ.get(name) != value}
    print(json.dumps(added))  # noqa: T201 - the answer
