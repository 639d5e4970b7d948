"""The `orc` command: what a user types, turned into calls of a manager's Control service.

The command line is a promise: where Docker has a command or flag for a thing, ours has the same
name, short form and meaning. Everything that shows something has `--format table|json`, `-q` and
`--filter`; errors are one line on stderr that says what is wrong and what to do.

A file a noun (`node`, `service`, `image`, `network`, `cluster`, `contexts`), and beside them:

- `main`: the root group. It knows every command's name and summary as data and imports a noun's
  module only when it is called for, so that `orc --help` and completion are quick. That is also
  how commands of other packages (`orc manager`, `orc agent`, `orc dev`) come in.
  `container_group`, `image_group`, `system_group`: Docker's second names for the same commands.
- `groups`: that lazy group, near misses of command names, and errors as one line with the exit
  statuses 0 done, 1 refused or failed, 2 usage, 3 not converged in time, 4 rolled back.
- `client`: calls of the first manager that answers, with errors in the user's words. `rpc`,
  `http2`, `headers`: how a call travels, by mutual TLS. `context`: where the addresses and
  certificates of clusters are kept.
- `settings`, `spec_flags`, `spec_edit`: a service's flags to a spec, for `create` and `update`.
  `wait`: the lines that a user sees until a service has converged, `job_wait` until a job is done.
- `container_spec`: the flags of `run` and `create`; `new_spec`: what they and `service create`
  have in common; `container_update` has some of them. `container_watch`, `foreground`, `session`:
  from there to the program's end.
- `docker_flags`: what Docker has and Orc has not, with what to use instead.
- `output`: tables, JSON, filters; `template`: the templates of `--format`. `rows`: objects as the
  dicts that all are made from. `prune_flags`: filters and the question of what removes much.
- `build_context`: a folder as a tar stream that honours `.dockerignore`.
- `screen`: tables that fit the terminal, and meters of what takes its time; `live`, `bar`: what is
  drawn there. `several`: `inspect` and `rm` of several objects.
- `completion`: names that live in the cluster, for the shell; `shells`: how they get there.
- `cluster_top`, `top_views`, `top_feed`, `top_screen`: the cluster live. `support_bundle`,
  `support_state`: what is handed on to find a fault.
- `reference`: the commands as data, for pages and manual pages.

Startup time is a feature: what imports rich or Textual is imported where it draws, and nothing
imports gRPC's modules, which take longer to import than most commands to run; the little of its
protocol that a client needs is in `rpc`. What libraries import for nothing waits (`lazyimport`),
and the end is quick (`main`). There is no asyncio: one command makes one call, or follows one
stream.
"""
