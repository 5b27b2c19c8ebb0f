"""An OPC UA server of asyncua that tells what was done to it.

usage: commanded_opcua.py PORT

It prints `ready`, then `Setpoint is VALUE` and `Locked is VALUE` whenever its own variable has another value, and
`Fill called with LITRES`. Fill answers with all litres so far.
"""

import asyncio
import logging
import sys

from asyncua import Server, ua, uamethod

filled = 0.0


@uamethod
def fill(_parent, litres):
    global filled
    filled += litres
    print("Fill called with", litres, flush=True)
    return filled


async def main():
    logging.basicConfig(level=logging.WARNING)
    server = Server()
    await server.init()
    server.set_endpoint(f"opc.tcp://127.0.0.1:{sys.argv[1]}/")
    server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
    index = await server.register_namespace("urn:foreshore:peer:tank")
    tank = await server.nodes.objects.add_object(ua.NodeId("Tank", index), f"{index}:Tank")
    variables = {}
    for name in ["Setpoint", "Locked"]:
        node = ua.NodeId(f"Tank.{name}", index)
        variables[name] = await tank.add_variable(node, f"{index}:{name}", 20.0, ua.VariantType.Double)
        await variables[name].set_writable()
    litres = ua.Argument(Name="Litres", DataType=ua.NodeId(ua.ObjectIds.Double), ValueRank=-1)
    await tank.add_method(ua.NodeId("Tank.Fill", index), f"{index}:Fill", fill, [litres], [litres])
    async with server:
        print("ready", flush=True)
        known = dict.fromkeys(variables, 20.0)
        while True:
            for name, variable in variables.items():
                value = await variable.read_value()
                if value != known[name]:
                    known[name] = value
                    print(name, "is", value, flush=True)
            await asyncio.sleep(0.02)


asyncio.run(main())
