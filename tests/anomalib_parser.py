# SPDX-License-Identifier: Apache-2.0
"""The parser of anomalib's command line, which takes seconds to build."""

from functools import cache

from anomalib.cli.cli import AnomalibCLI
from jsonargparse import ArgumentParser


@cache
def anomalib_parser() -> ArgumentParser:
    """anomalib's parser with all subcommands; nothing is run."""
    command_line = AnomalibCLI.__new__(AnomalibCLI)
    command_line.parser = command_line.init_parser()
    command_line.subcommand_parsers = {}
    command_line.subcommand_method_arguments = {}
    command_line.add_subcommands()
    return command_line.parser
