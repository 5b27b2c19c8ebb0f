"""Leaves in a broker what nobody else is to read, with paho-mqtt, or fetches it.

Usage: mqtt_private.py PORT leave|fetch

leave  A session subscribes and is away, with a will that is delayed; somebody publishes to it, and a retained message.
       Everything was acknowledged when this ends.
fetch  The session comes back. Prints a JSON object: whether it was there (session), and what came (payloads, in order).
"""

import json
import sys
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

PATIENCE = 60
port, task = int(sys.argv[1]), sys.argv[2]


def connect(name, clean, will=None):
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
    client.got, client.present, client.done = [], None, 0
    client.on_connect = lambda c, u, flags, reason, p: setattr(c, "present", flags.session_present)
    client.on_message = lambda c, u, message: c.got.append(message.payload.decode())

    def done(*_):
        client.done += 1

    client.on_subscribe = client.on_publish = done
    if will:
        delay = Properties(PacketTypes.WILLMESSAGE)
        delay.WillDelayInterval = 3000
        client.will_set("plant/last-words", will, 1, properties=delay)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 0 if clean else 3600
    client.connect("127.0.0.1", port, clean_start=clean, properties=properties)
    wait(client, lambda: client.present is not None)
    return client


def wait(client, is_done):
    end = time.monotonic() + PATIENCE
    while not is_done():
        if time.monotonic() > end:
            sys.exit(f"no answer within {PATIENCE} s")
        client.loop(timeout=0.1)


if task == "leave":
    away = connect("press-operator-7", False, "the press is gone")
    away.subscribe("plant/recipes/#", 1)
    wait(away, lambda: away.done == 1)
    # Without a DISCONNECT, so that the will waits too.
    away.socket().close()
    publisher = connect("recipe-publisher", True)
    properties = Properties(PacketTypes.PUBLISH)
    properties.UserProperty = ("batch", "number of the batch")
    publisher.publish("plant/recipes/secret", "two spoons of sugar", 1, properties=properties)
    wait(publisher, lambda: publisher.done == 1)
    publisher.publish("plant/recipes/kept", "kept recipe", 1, retain=True)
    wait(publisher, lambda: publisher.done == 2)
    publisher.disconnect()
else:
    back = connect("press-operator-7", False)
    wait(back, lambda: len(back.got) == 2)
    print(json.dumps({"session": back.present, "payloads": back.got}))
