# SPDX-License-Identifier: Apache-2.0
"""Networks of this node: kept as ordered, containers attached, the endpoint table followed.

The agent neither allocates addresses nor configures interfaces. `reconciler` applies the networks
that a manager orders and attaches containers. It uses `node_network`, whose requests go to
`orchestrator.cni.helper`: a child process that enters namespaces, which this process, with its
event loop and gRPC's threads, cannot do. The kernel's load balancer (`load_balancer`) and the name
server (`name_server`) follow the endpoint table (`endpoint_table`).

Every request is idempotent: after a crash, a timeout or a killed helper it is sent again. An
attachment keeps its address, and detaching what is gone succeeds. After a restart of the agent,
`collect` with the containers that are still wanted removes all other addresses, namespaces,
interfaces and published ports.

    async with NodeNetwork(state_dir, run_dir) as network:
        await network.apply(config)
        ports = (PortMapping(8080, 80),)
        attachment = await network.attach(config.id, container_id, Interface(ports=ports))
        ...  # run the container in attachment.netns
        await network.detach(container_id)

Errors are `NetworkError`, whose text is for the user. Networks of third-party plugins are in
`netplugins`.
"""
