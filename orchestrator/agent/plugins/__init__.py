"""Docker's plugin API, of whatever kind the plugin is: found, reached, asked, and not trusted.

- `discovery`: sockets and `.spec` and `.json` files, and which plugins behind them answer.
- `calls`: one call, its time and its error; and trying again while a plugin is away.
- `http`: as much of HTTP as that takes.

What plugins of volumes are asked stands in `volumes.pluginapi`, of networks in
`netplugins.driverapi`.
"""
