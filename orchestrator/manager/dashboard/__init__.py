"""The web page: the cluster as a picture that moves, for whoever has a ticket.

    orc dashboard ──▶ a ticket (minutes) ──▶ POST /api/session ──▶ a cookie (hours)
    GET /api/events   the whole cluster once, then what changes, as server-sent events
    GET /api/traffic  who talks to whom, every few seconds; nodes are asked while somebody looks
    GET /api/history  what a task or node used in the last hour
    GET /api/logs     a service's or task's lines as they are written
    POST /api/act     scale, drain, activate, roll back, restart: what the API refuses is refused

Tickets and cookies are sealed with the cluster's key (`vault`), so that no manager keeps a list of
who is logged in, and any of them takes what another gave out. The page is plain files, it asks
nothing of any other host, and it shows nothing that `orc inspect` would not.

Files: `sessions` (tickets and cookies), `picture` (the view as JSON; pure), `broadcast` (its
changes, for all who look), `traffic` (what nodes tell, joined), `app` (the requests), `actions`
(what may be done), `tickets` (the API's call), `page/` (what the browser gets).
"""
