"""Scripts that complete the commands and options of `headroom` in a shell."""

import argparse
import re
import shlex
from collections.abc import Mapping

SHELLS = ("bash", "zsh", "fish")
# zsh has an emulation of bash's completion.
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"


def completion(program: str, commands: Mapping[str, argparse.ArgumentParser], shell: str) -> str:
    """Return the script for a shell of SHELLS."""
    options = {name: sorted(set(re.findall(r"--[a-z-]+", each.format_help()))) for name, each in commands.items()}
    if shell == "fish":
        lines = [f"complete -c {program} -f"]
        for name, command in commands.items():
            description = shlex.quote(command.description or "")
            lines.append(f"complete -c {program} -n __fish_use_subcommand -a {name} -d {description}")
            condition = shlex.quote(f"__fish_seen_subcommand_from {name}")
            lines += [f"complete -c {program} -n {condition} -l {option[2:]}" for option in options[name]]
        return "\n".join(lines) + "\n"
    cases = "".join(f"    {name}) words='{' '.join(words)}' ;;\n" for name, words in options.items())
    script = f"""\
_{program}() {{
  local words=''
  if [ "$COMP_CWORD" -eq 1 ]; then words='{" ".join(commands)}'; else
  case "${{COMP_WORDS[1]}}" in
{cases}  esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _{program} {program}
"""
    return (_ZSH if shell == "zsh" else "") + script
