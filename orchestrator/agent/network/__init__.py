"""The agent's side of the network: what a node is told, handed to the warm helper.

The agent decides nothing about addresses and touches no interface. It passes on the network's
configuration whenever that changes and every now and then (`NodeNetwork.apply` is level-triggered,
so calling it too often costs milliseconds and calling it late mends what broke), and asks for an
attachment when a container starts and its end when it stops. All of it is done by
`orchestrator.cni.helper`, a child process that enters namespaces so that this process, which runs
an event loop and gRPC's threads, never has to.

Every call is idempotent, so whoever is unsure whether one happened (a crash, a timeout, a helper
that was killed) makes it again: an attachment keeps its address, a detachment of what is gone
succeeds. After a restart of the agent, `collect` with the containers that are still wanted removes
whatever else is left: addresses, namespaces, interfaces, published ports.

    async with NodeNetwork(state_dir, run_dir) as network:
        await network.apply(config)
        ports = (PortMapping(8080, 80),)
        attachment = await network.attach(config.id, container_id, Interface(ports=ports))
        ...  # run the container in attachment.netns
        await network.detach(container_id)

Errors are `NetworkError`, whose text is for the user.
"""
