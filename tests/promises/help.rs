//! The help pages: a summary, a paragraph, the options, the exit codes and an example.
//!
//! Longer than 500 lines because every page is here as it is printed.

use snapbox::str;

use crate::support::Sandbox;
use crate::support::text::same;

/// The pages of a helper and all its commands.
fn pages(helper: &str, commands: &[&str]) -> String {
    let sandbox = Sandbox::new();
    let mut pages = sandbox.ok(helper, &["--help"]);
    for command in commands {
        let page = sandbox.ok(helper, &[command, "--help"]);
        pages.push_str(&format!("\n==== {helper} {command}\n{page}"));
    }
    assert!(pages.lines().all(|line| line.chars().count() <= 100), "{pages}");
    pages.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

#[test]
fn reconcile_pages_explain_every_command() {
    let commands =
        ["status", "show", "statusline", "watch", "stop", "merge", "clean", "adopt", "note"];
    same(
        &pages("dispatch-reconcile", &commands),
        str![[r#"
Show and manage tasks

A task belongs to the project it was dispatched in: the repository or the
directory with `.dispatch/tasks`. Without a command, the status is shown.

Usage: dispatch-reconcile [OPTIONS] [COMMAND]

Commands:
  status      Show all tasks, most urgent first (the default)
  show        Show one task: plan, questions, notes, attempts, cost, commits and logs
  statusline  Print the number of tasks in each state, for Claude Code's status line
  watch       Show all tasks live on this terminal, with keys to answer, stop and read logs
  stop        Stop a task's worker
  merge       Merge a task's branch into the branch that is checked out here
  clean       Remove finished tasks, and their worktrees if no work would be lost
  adopt       Take over the tasks of a project that was moved, copied, replaced or restored
  note        Send a note to a task's worker, at the end of its plan
  help        Print this message or the help of the given subcommand(s)

Options:
      --all
          Also show tasks that were done over a day ago, and the total cost

      --json
          Print JSON

      --follow
          Keep running and print a line for each task that changes (for a screen reader)

      --color <WHEN>
          Colour the table: `auto` does so on a terminal, unless NO_COLOR is set

          [default: auto]
          [possible values: auto, always, never]

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

  -V, --version
          Print version

Exit codes: 0 done, 1 failed, 64 wrong arguments, 65 no such task or a broken
file, 75 not now (a worker is running)

Example: dispatch-reconcile show fix-login-bug

==== dispatch-reconcile status
Show all tasks, most urgent first (the default)

Crashes are repaired first: unseen ends are recorded, tasks without a supervisor
restart, and temporary files of dead writers are removed. A terminal gets a
table, a pipe one line for each task. The command that helps a task on stands
after `→`. Tasks that were done over a day ago are only counted.

Usage: dispatch-reconcile status [OPTIONS]

Options:
      --all
          Also show tasks that were done over a day ago, and the total cost

      --json
          Print JSON

      --follow
          Keep running and print a line for each task that changes (for a screen reader)

      --color <WHEN>
          Colour the table: `auto` does so on a terminal, unless NO_COLOR is set

          [default: auto]
          [possible values: auto, always, never]

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 shown, 64 wrong arguments, 65 `.dispatch` is a symlink

Example: dispatch-reconcile status --all

==== dispatch-reconcile show
Show one task: plan, questions, notes, attempts, cost, commits and logs

Text in quotation marks is the worker's. Look for secrets in a text from
`--markdown` before you pass it on. A session of Claude Code that is shown its
own task is not woken for that news again.

Usage: dispatch-reconcile show [OPTIONS] <TASK>

Arguments:
  <TASK>
          The task's id

Options:
      --json
          Print JSON; a report that is JSON is in it as `report`

      --markdown
          Print one text in Markdown, with the report and the size of the changes

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 shown, 64 wrong arguments, 65 no such task or a broken file

Example: dispatch-reconcile show fix-login-bug

==== dispatch-reconcile statusline
Print the number of tasks in each state, for Claude Code's status line

Claude Code sends a status line JSON with the directory on standard input.
Nothing is printed if no task is open; nothing is repaired, and nothing fails.

Usage: dispatch-reconcile statusline [OPTIONS]

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit code: 0

Example: echo '{"cwd":"/home/me/shop"}' | dispatch-reconcile statusline

==== dispatch-reconcile watch
Show all tasks live on this terminal, with keys to answer, stop and read logs

The last line shows the keys; q leaves. Without a terminal, the status is
printed once.

Usage: dispatch-reconcile watch [OPTIONS]

Options:
      --color <WHEN>
          Colour the screen: `auto` does so unless NO_COLOR is set

          [default: auto]
          [possible values: auto, always, never]

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 left, 1 failed, 64 wrong arguments, 65 `.dispatch` is a symlink

Example: dispatch-reconcile watch

==== dispatch-reconcile stop
Stop a task's worker

The worker gets 10 seconds to end by itself. Its changes stay, and
`dispatch-spawn TASK --resume` continues the task. For an agent of Claude Code,
the TaskStop call that the session has to make is printed.

Usage: dispatch-reconcile stop [OPTIONS] <TASK>

Arguments:
  <TASK>
          The task's id

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 stopped, or had ended already, 1 cannot stop it, 64 wrong
arguments, 65 no such task, 75 a process is still running

Example: dispatch-reconcile stop fix-login-bug

==== dispatch-reconcile merge
Merge a task's branch into the branch that is checked out here

The worker must have ended and committed its work. A merge with conflicts lists
them and changes nothing.

Usage: dispatch-reconcile merge [OPTIONS] <TASK>

Arguments:
  <TASK>
          The task's id

Options:
      --onto
          Take only the task's commits, after those that are checked out here

      --pr
          Merge nothing; print the commands that push the branch and open a draft pull request

      --uncommitted
          Commit what the worker left uncommitted, and merge that too

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 merged, 1 failed and changed nothing, 64 wrong arguments, 65 not
possible, with the reason, 75 the worker is running

Example: dispatch-reconcile merge fix-login-bug

==== dispatch-reconcile clean
Remove finished tasks, and their worktrees if no work would be lost

Without a name, all tasks that are done are removed. A failed, stopped or
blocked task is only removed by name. Work that exists nowhere else is kept, and
so is the report (in `.dispatch/reports`). With `--stale`, what dispatch knows
of projects that no longer exist moves to `~/.dispatch/trash`, from where `mv`
puts it back for 30 days; older trash is removed.

Usage: dispatch-reconcile clean [OPTIONS] [TASK]...

Arguments:
  [TASK]...
          The tasks to remove, also failed or stopped ones [default: all that are done]

Options:
      --older-than <DURATION>
          Only tasks that ended at least this long ago, like 7d

      --dry-run
          Show what would be removed, and remove nothing

      --stale
          Move the state of projects that no longer exist to the trash, in a terminal

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 done, 1 a named task was kept, 64 wrong arguments, or no person at
a terminal for `--stale`, 65 no such task

Example: dispatch-reconcile clean --older-than 7d --dry-run

==== dispatch-reconcile adopt
Take over the tasks of a project that was moved, copied, replaced or restored

The tasks are listed with their access, and a person is asked at the terminal. A
host whose ask rule shows the person the tasks with their access (`install.sh
--allow`) may name them instead. Nothing is started, except what waits for its
turn. Of a copy, only tasks that do not run are taken.

Usage: dispatch-reconcile adopt [OPTIONS] [TASK=ACCESS]...

Arguments:
  [TASK=ACCESS]...
          The tasks that may be taken over, each with its access; all of them

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 done, or nothing to do, 64 no person agrees, 65 other tasks were
named, 75 a task of a moved project is running

Example: dispatch-reconcile adopt

==== dispatch-reconcile note
Send a note to a task's worker, at the end of its plan

A running worker sees the note at its next call of a helper; a later worker sees
it in its prompt.

Usage: dispatch-reconcile note [OPTIONS] <TASK> <TEXT|->

Arguments:
  <TASK>
          The task's id

  <TEXT|->
          The note; - reads it from standard input

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 noted, 64 wrong arguments, 65 no such task, or it is done

Example: dispatch-reconcile note fix-login-bug 'Keep the old API.'

"#]],
    );
}

#[test]
fn spawn_and_monitor_pages_name_defaults_and_exit_codes() {
    same(
        &pages("dispatch-spawn", &[]),
        str![[r#"
Start or resume a task's worker and return at once

The worker gets the plan, a checklist in Markdown, and runs in the background;
the output says what to do next. Without `--plan`, the plan is the file
`.dispatch/tasks/TASK/plan.md`. `--resume` keeps the items that are done.

Usage: dispatch-spawn [OPTIONS] [TASK]

Arguments:
  [TASK]
          The id of the task: lower-case words joined by '-'

Options:
      --plan <FILE|->
          Read the plan from FILE or standard input [default: the task's plan.md]

      --model <NAME>
          A model or an alias of the config [default: the config's default]

      --worktree
          Give the worker a git worktree and a branch of its own

      --with-changes
          Begin the worktree with the uncommitted changes of this checkout

      --on <PLACE>
          Run the worker at this place of the config, in a worktree there

      --access <ACCESS>
          Access of the worker [default: the backend's access, else write]

          Possible values:
          - read:  Read only
          - write: Change the project and run its commands
          - full:  Anything, without prompting

      --after <TASK>
          Start when TASK is done (repeatable)

      --check <COMMAND>
          Count the task as done only if COMMAND succeeds in its directory (repeatable)

      --budget <LIMIT>
          Ask before the task uses more than LIMIT, as 5usd,2Mtok,90m [default: the config's]

      --review <NAME>
          Count the task as done only if NAME, a model that reads the work, has no findings

      --continue-branch
          Work on the branch of the task after --after, instead of one of its own

      --agent
          Use an agent of this session for Claude, whatever the config's route is

      --skip <ITEM>
          Tick this unwanted item, named by its number or words (repeatable)

      --keep
          Keep what the finished worker leaves running, until `stop` or `clean TASK`

      --may-dispatch
          Let the worker dispatch tasks of its own (only at full access)

      --resume
          Resume a task's remaining items (`--model` picks another worker); start a waiting task now

      --dry-run
          Print the command that would run, and start nothing

      --json
          Print the command as JSON

      --nested
          Allow this call from inside a worker with --may-dispatch

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

  -V, --version
          Print version

Exit codes: 0 started or queued, 1 failed, 64 wrong arguments, 65 the config,
the plan or the task does not allow it, 69 a CLI or a helper is missing, 73 the
id is taken, 75 a worker is running

Example: dispatch-spawn fix-login-bug --model opus --plan plan.md

"#]],
    );
    same(
        &pages("dispatch-monitor", &[]),
        str![[r#"
Wait for news of tasks, print one line for each event, and exit

News is a question, a message, or the end of a worker; each line ends with what
to do next. With `--answer`, nothing is waited for: the answer reaches the
worker, or resumes a worker that has stopped.

Usage: dispatch-monitor [OPTIONS] [TASK]...

Arguments:
  [TASK]...
          The tasks to wait for [default: all tasks of the project]

Options:
      --timeout <DURATION>
          Stop waiting after this time, for example 90s or 10m [default: wait while a worker runs]

      --hook
          Wait as a hook of Claude Code: print news on standard error and exit with 2

      --answer <TASK[/NNN]> <TEXT|->
          Answer question NNN of a task [default: its newest open question]; - reads standard input

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

  -V, --version
          Print version

Exit codes: 0 there was news, or the answer was posted, 1 failed, 2 only with
`--hook`: news for the model, 3 timed out with no news, 64 wrong arguments, 65
no such task or question, 75 not now

Example: dispatch-monitor --answer fix-login-bug 'Use the second one.'

"#]],
    );
}

#[test]
fn config_pages_explain_every_command() {
    let commands = [
        "brief",
        "detect",
        "models",
        "setup",
        "resolve",
        "set-default",
        "add-model",
        "set-model",
        "remove-model",
        "add-backend",
        "set-access",
        "add-alias",
        "remove-alias",
        "migrate",
        "check",
        "show",
        "path",
        "allow",
    ];
    same(
        &pages("dispatch-config", &commands),
        str![[r#"
Find worker CLIs and models, and edit the config

The config is `~/.dispatch/config.yaml`; the variable DISPATCH_CONFIG names
another file. An edit changes only the lines it must, and keeps the last version
as `config.yaml.bak`.

Usage: dispatch-config [OPTIONS] <COMMAND>

Commands:
  brief         Print worker names, tasks and news for a dispatcher, in a few lines
  detect        List the worker CLIs on this machine, with versions and logins
  models        List the models of the worker CLIs on this machine
  setup         Write the first config, from the CLIs on this machine
  resolve       Show which worker a name or sentence resolves to
  set-default   Make a model or an alias the default
  add-model     Add a model
  set-model     Give a model another backend
  remove-model  Remove a model
  add-backend   Add a backend
  set-access    Set the access of a backend's workers
  add-alias     Add an alias
  add-place     Add a place: a machine or container that workers run at (`--on`)
  remove-alias  Remove an alias
  migrate       Add backends and models to a config of the old format (agents:)
  check         List all problems of the config
  show          Print the config
  places        List the places of the config, and look whether each can run workers
  path          Print the path of the config
  allow         Allow Claude Code to run the helpers without prompting
  help          Print this message or the help of the given subcommand(s)

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

  -V, --version
          Print version

Exit codes: 0 done, 1 failed, 64 wrong arguments, 65 the config is invalid or
lacks the named entry, 69 no worker CLI is installed

Example: dispatch-config add-model gpt-5.3-codex

==== dispatch-config brief
Print worker names, tasks and news for a dispatcher, in a few lines

The skill calls this at every `/dispatch`. Crashes are repaired first, as by
`dispatch-reconcile status`. Problems are printed too, because only a model
reads this.

Usage: dispatch-config brief [OPTIONS]

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit code: 0

Example: dispatch-config brief

==== dispatch-config detect
List the worker CLIs on this machine, with versions and logins

Each CLI on the PATH is asked for its version and whether it is logged in. A
slow CLI is asked again and named.

Usage: dispatch-config detect [OPTIONS]

Options:
      --json
          Print JSON

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 listed, 64 wrong arguments, 69 no worker CLI is installed

Example: dispatch-config detect

==== dispatch-config models
List the models of the worker CLIs on this machine

The CLIs are asked once a day; the lists are kept in `~/.dispatch/models.json`.
A CLI without a list is named with the reason.

Usage: dispatch-config models [OPTIONS]

Options:
      --refresh
          Ask the CLIs again instead of using the cached lists

      --json
          Print JSON

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 listed, 64 wrong arguments, 69 no worker CLI is installed

Example: dispatch-config models --refresh

==== dispatch-config setup
Write the first config, from the CLIs on this machine

All models of the installed CLIs are added. An existing config is never
replaced. Without `--yes`, a person is asked at the terminal.

Usage: dispatch-config setup [OPTIONS]

Options:
      --default <MODEL>
          The default model [default: asked at the terminal]

      --full <BACKEND>
          Give this CLI's workers full access, if it cannot hold them to the project (repeatable)

      --route <ROUTE>
          Run Claude's workers as agents of the session or as processes [default: agent]

          Possible values:
          - agent: By the host's own Agent tool
          - cli:   As a detached process

      --yes
          Write without asking

      --json
          Print CLIs, models and sensible defaults as JSON, and write nothing

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 written or declined, 64 wrong arguments or no terminal, 65 no such
model, 69 no worker CLI is installed, 73 there is a config already

Example: dispatch-config setup --default opus

==== dispatch-config resolve
Show which worker a name or sentence resolves to

A sentence names a worker by a whole word, the last one if it names several. A
provider ("gemini") stands for its newest model in the config.

Usage: dispatch-config resolve [OPTIONS] [NAME]

Arguments:
  [NAME]
          A model, an alias or a provider [default: the default model]

Options:
      --request <TEXT|->
          A sentence that may name a worker; - reads standard input

      --instead-of <NAME>
          Suggest replacements for this model, best first

      --json
          Print JSON

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 found, 64 wrong arguments, 65 no such name, or no config, 69 no
replacement would work

Example: dispatch-config resolve --request 'use gemini to review the parser'

==== dispatch-config set-default
Make a model or an alias the default

A task that names no worker goes to the default.

Usage: dispatch-config set-default [OPTIONS] <NAME>

Arguments:
  <NAME>
          A model, an alias or a provider

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 changed, 64 wrong arguments, 65 no such name, or no config

Example: dispatch-config set-default sonnet

==== dispatch-config add-model
Add a model

The model is added to the config, with its backend if that is missing.

Usage: dispatch-config add-model [OPTIONS] <ID>

Arguments:
  <ID>
          The model's id

Options:
      --backend <BACKEND>
          The backend that runs it [default: the CLI on this machine that has it]

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 added, 64 wrong arguments, 65 the name is taken, or no CLI has the
model

Example: dispatch-config add-model gpt-5.3-codex

==== dispatch-config set-model
Give a model another backend

Later tasks with this model run on the other backend.

Usage: dispatch-config set-model [OPTIONS] --backend <BACKEND> <ID>

Arguments:
  <ID>
          The model's id

Options:
      --backend <BACKEND>
          The backend that will run it

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 changed, 64 wrong arguments, 65 no such model or backend

Example: dispatch-config set-model gpt-5.3-codex --backend cursor

==== dispatch-config remove-model
Remove a model

A model that is the default, or that an alias stands for, is kept.

Usage: dispatch-config remove-model [OPTIONS] <ID>

Arguments:
  <ID>
          The model's id

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 removed, 64 wrong arguments, 65 no such model, or it is in use

Example: dispatch-config remove-model gpt-5.3-codex

==== dispatch-config add-backend
Add a backend

A backend is a worker CLI: a known one by its name, any other one by its shell
command.

Usage: dispatch-config add-backend [OPTIONS] <NAME>

Arguments:
  <NAME>
          The backend's name

Options:
      --command <COMMAND>
          The shell command that starts it [default: the known CLI of that name]

      --prompt <PROMPT>
          How it gets its prompt; as an argument, every user of the machine can read it

          Possible values:
          - stdin: On standard input
          - arg:   As the last argument
          - file:  As a file, which the last argument tells it to read

          [default: stdin]

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 added, 64 wrong arguments, 65 the name is taken

Example: dispatch-config add-backend harvey --command 'harvey run --yes'

==== dispatch-config set-access
Set the access of a backend's workers

A task that asks for no access gets this one: `read`, `write` or `full`.

Usage: dispatch-config set-access [OPTIONS] <BACKEND> <ACCESS>

Arguments:
  <BACKEND>
          The backend's name

  <ACCESS>
          The access of tasks that ask for none

          Possible values:
          - read:  Read only
          - write: Change the project and run its commands
          - full:  Anything, without prompting

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 changed, 64 wrong arguments, 65 no such backend, or not possible

Example: dispatch-config set-access codex read

==== dispatch-config add-alias
Add an alias

An alias is a name of your own for a model. Its prompt opens the prompt of every
worker with that name.

Usage: dispatch-config add-alias [OPTIONS] --model <MODEL> <NAME>

Arguments:
  <NAME>
          The alias's name

Options:
      --model <MODEL>
          The model that it stands for

      --prompt <PROMPT>
          Text that opens every prompt [default: none]

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 added, 64 wrong arguments, 65 the name is taken, or no such model

Example: dispatch-config add-alias reviewer --model opus --prompt 'Find bugs.'

==== dispatch-config remove-alias
Remove an alias

An alias that is the default or a fallback is kept.

Usage: dispatch-config remove-alias [OPTIONS] <NAME>

Arguments:
  <NAME>
          The alias's name

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 removed, 64 wrong arguments, 65 no such alias, or it is in use

Example: dispatch-config remove-alias reviewer

==== dispatch-config migrate
Add backends and models to a config of the old format (agents:)

Every line of the old config stays.

Usage: dispatch-config migrate [OPTIONS]

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 migrated, or nothing to do, 64 wrong arguments, 65 no config, 69
no worker CLI is installed

Example: dispatch-config migrate

==== dispatch-config check
List all problems of the config

Each problem has its line, column and remedy. Warnings alone leave the config
valid.

Usage: dispatch-config check [OPTIONS]

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 valid, 64 wrong arguments, 65 invalid, or no config

Example: dispatch-config check

==== dispatch-config show
Print the config

The file is printed as it is, if it is valid YAML.

Usage: dispatch-config show [OPTIONS]

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 printed, 64 wrong arguments, 65 invalid, or no config

Example: dispatch-config show

==== dispatch-config path
Print the path of the config

The file need not exist.

Usage: dispatch-config path [OPTIONS]

Options:
  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 printed, 64 wrong arguments

Example: dispatch-config path

==== dispatch-config allow
Allow Claude Code to run the helpers without prompting

The rules are shown before they are added to Claude Code's settings. Calls that
give a worker more access still prompt, and are refused without these rules.
`install.sh --allow` calls this.

Usage: dispatch-config allow [OPTIONS]

Options:
      --bin <DIR>
          A path of the launchers' directory (repeatable) [default: all its paths]

      --remove
          Remove all rules that this command added

      --yes
          Do not ask for confirmation

      --dry-run
          Only show the rules

  -C <DIR>
          Work in this directory [default: the current one]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 added, removed or declined, 64 wrong arguments or no terminal, 65
the settings cannot be edited safely

Example: dispatch-config allow --dry-run

"#]],
    );
}

#[test]
fn worker_pages_explain_every_command() {
    let commands = ["ask", "wait", "tell", "tick", "report", "block", "fail", "finish", "demo"];
    same(
        &pages("dispatch-worker", &commands),
        str![[r#"
Report a worker's progress and questions to the person who gave the task

A worker calls this, or a person who works through a plan by hand. A text given
as - is read from standard input.

Usage: dispatch-worker --task-dir <DIR> <COMMAND>

Commands:
  ask     Ask the person and wait for the answer
  wait    Keep waiting for an answer
  tell    Tell the person something without waiting
  tick    Mark an item as done
  report  Publish the report
  block   Mark an item as blocked on an answer that did not come
  fail    Mark an item as failed
  finish  Report that everything is done
  demo    Act as a demo worker that walks any plan
  help    Print this message or the help of the given subcommand(s)

Options:
      --task-dir <DIR>
          The directory of the task

          [env: DISPATCH_TASK_DIR]

  -h, --help
          Print help (see a summary with '-h')

  -V, --version
          Print version

Exit codes: 0 done, 1 failed, 3 no answer came in time, 64 wrong arguments, 65
no such item or question, or not allowed now, 75 no answer yet

Example: dispatch-worker --task-dir .dispatch/tasks/fix-login-bug tick 2

==== dispatch-worker ask
Ask the person and wait for the answer

The answer is printed. Without one, the output says how to keep waiting, or that
the patience of the config is over.

Usage: dispatch-worker --task-dir <DIR> ask <TEXT>

Arguments:
  <TEXT>
          The question

Options:
  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 answered, 3 the patience is over, 64 wrong arguments, 75 no answer
yet

Example: dispatch-worker ask 'Which database?'

==== dispatch-worker wait
Keep waiting for an answer

The output is that of `ask`.

Usage: dispatch-worker --task-dir <DIR> wait <NUMBER>

Arguments:
  <NUMBER>
          The question's number, for example 001

Options:
  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 answered, 3 the patience is over, 64 wrong arguments, 65 no such
question, 75 no answer yet

Example: dispatch-worker wait 001

==== dispatch-worker tell
Tell the person something without waiting

The session that gave the task is woken with the message.

Usage: dispatch-worker --task-dir <DIR> tell <TEXT>

Arguments:
  <TEXT>
          The message

Options:
  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 sent, 64 wrong arguments

Example: dispatch-worker tell 'The tests need a database.'

==== dispatch-worker tick
Mark an item as done

The next item is printed, and new notes from the person.

Usage: dispatch-worker --task-dir <DIR> tick [OPTIONS] <ITEM>

Arguments:
  <ITEM>
          The number of the item in the worker's copy of the plan, or its words

Options:
      --note <NOTE>
          A short note about the item [default: none]

  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 ticked, 64 wrong arguments, 65 no such item, or the plan cannot be
edited safely

Example: dispatch-worker tick 2 --note 'three files'

==== dispatch-worker report
Publish the report

The report becomes `output.md` in the directory of the task, and replaces an
earlier one.

Usage: dispatch-worker --task-dir <DIR> report <TEXT>

Arguments:
  <TEXT>
          The report

Options:
  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 published, 64 wrong arguments

Example: dispatch-worker report - <report.md

==== dispatch-worker block
Mark an item as blocked on an answer that did not come

The worker stops after this; an answer resumes the task.

Usage: dispatch-worker --task-dir <DIR> block <ITEM> <TEXT>

Arguments:
  <ITEM>
          The number of the item in the worker's copy of the plan, or its words

  <TEXT>
          The question that needs an answer

Options:
  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 marked, 64 wrong arguments, 65 no such item, or the answer has
come

Example: dispatch-worker block 2 'Which database?'

==== dispatch-worker fail
Mark an item as failed

The worker stops after this, and the person is told the error.

Usage: dispatch-worker --task-dir <DIR> fail <ITEM> <TEXT>

Arguments:
  <ITEM>
          The number of the item in the worker's copy of the plan, or its words

  <TEXT>
          The error

Options:
  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 marked, 64 wrong arguments, 65 no such item

Example: dispatch-worker fail 2 'The build server is down.'

==== dispatch-worker finish
Report that everything is done

Every item must be ticked and every note read. A longer summary is cut after a
sentence.

Usage: dispatch-worker --task-dir <DIR> finish [SUMMARY]

Arguments:
  [SUMMARY]
          The result, in two or three sentences (at most 700 characters)

Options:
  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 finished, 64 wrong arguments, 65 something is left to do

Example: dispatch-worker finish 'Fixed the parser and added two tests.'

==== dispatch-worker demo
Act as a demo worker that walks any plan

This worker asks one question and needs no AI; `install.sh --demo` uses it.

Usage: dispatch-worker --task-dir <DIR> demo

Options:
  -h, --help
          Print help (see a summary with '-h')

Exit codes: 0 finished, 1 failed

Example: dispatch-worker demo

"#]],
    );
}

/// The pages of a helper are complete: a new command has to be added to its test.
#[test]
fn every_page_has_exit_codes_and_an_example() {
    let sandbox = Sandbox::new();
    for helper in dispatch::HELPERS {
        let page = sandbox.ok(helper, &["--help"]);
        let commands = page.split_once("\nCommands:\n").map_or("", |(_, rest)| rest);
        let commands = commands.split("\n\n").next().unwrap_or_default();
        let names = commands.lines().filter_map(|line| line.split_whitespace().next());
        let names = names.filter(|name| *name != "help");
        let mut all: Vec<(String, String)> = vec![(helper.to_string(), page.clone())];
        all.extend(
            names.map(|name| (format!("{helper} {name}"), sandbox.ok(helper, &[name, "--help"]))),
        );
        for (name, page) in all {
            let (_, end) = page.split_once("\nExit code").expect("exit codes");
            assert!(end.contains("\nExample: "), "{name}");
            assert!(end.contains(helper), "{name}");
        }
    }
}

#[test]
fn wrong_arguments_point_to_help_of_their_command() {
    let sandbox = Sandbox::new();
    let run = |helper: &str, args: &[&str]| sandbox.run(helper, args);
    run("dispatch-reconcile", &["show"]).shows(str![[r#"
exit 64
! dispatch-reconcile: the following required arguments were not provided: <TASK>
!   next: see dispatch-reconcile show --help
"#]]);
    run("dispatch-reconcile", &["clean", "--older-than", "soon"]).shows(str![[r#"
exit 64
! dispatch-reconcile: invalid value 'soon' for '--older-than <DURATION>': expected number at 0
!   next: see dispatch-reconcile clean --help
"#]]);
    run("dispatch-reconcile", &["stop", "x", "--json"]).shows(str![[r#"
exit 64
! dispatch-reconcile: unexpected argument '--json' found
!   to pass '--json' as a value, use '-- --json'
!   next: see dispatch-reconcile stop --help
"#]]);
    run("dispatch-reconcile", &["--json", "stop", "x"]).shows(str![[r#"
exit 64
! dispatch-reconcile: an option of a command was given before the command
!   next: put it after the command
"#]]);
    run("dispatch-reconcile", &["status", "--color", "blue"]).shows(str![[r#"
exit 64
! dispatch-reconcile: invalid value 'blue' for '--color <WHEN>' [possible values: auto, always, never]
!   next: see dispatch-reconcile status --help
"#]]);
}

#[test]
fn helper_without_arguments_prints_its_help() {
    let sandbox = Sandbox::new();
    for (helper, shown) in [
        ("dispatch-config", "  resolve "),
        ("dispatch-worker", "  finish "),
        ("dispatch-spawn", "Usage: dispatch-spawn [OPTIONS] "),
    ] {
        let ran = sandbox.run(helper, &[]);
        assert_eq!((ran.code, ran.out.as_str()), (Some(64), ""), "{helper}");
        assert!(ran.err.contains(shown) && ran.err.contains("--help"), "{}", ran.err);
    }
}
