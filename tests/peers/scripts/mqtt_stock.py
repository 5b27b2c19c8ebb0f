"""Fills the queue of a session that is away, or empties it, with paho-mqtt.

Usage: mqtt_stock.py PORT fill COUNT SIZE
       mqtt_stock.py PORT drain SIZE

The payload of number n is n and digits that follow from it, SIZE characters in all. "fill" publishes numbers from 0 at QoS 1
to the topics of a session that subscribed and went, and prints "filled" once all are acknowledged. "drain" takes the session
up, again whenever the connection breaks, prints "draining", and on SIGTERM a JSON object: the numbers that came ("got") and
the payloads that no number has ("wrong").
"""

import hashlib
import json
import signal
import sys
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

# Publishes on the way at a time.
WINDOW = 200

port, what, *numbers = sys.argv[1:]
port, numbers = int(port), [int(number) for number in numbers]
stopping = threading.Event()
signal.signal(signal.SIGTERM, lambda *_: stopping.set())


def payload(n, size):
    digits = hashlib.sha512(str(n).encode()).hexdigest()
    return f"{n} {digits * (size // len(digits) + 1)}"[:size]


def connected(name, on_connect):
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=mqtt.MQTTv5)
    client.on_connect = on_connect
    client.max_inflight_messages_set(WINDOW)
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3600
    client.connect("127.0.0.1", port, keepalive=60, clean_start=False, properties=properties)
    return client


def fill(count, size):
    subscribed = threading.Event()
    session = connected("stock", lambda client, *_: client.subscribe("stock/#", 1))
    session.on_subscribe = lambda *_: subscribed.set()
    while not subscribed.is_set():
        session.loop(timeout=0.1)
    session.disconnect()

    acknowledged = 0

    def on_publish(client, data, mid, reason, properties):
        nonlocal acknowledged
        if reason.is_failure:
            sys.exit(f"refused: {reason}")
        acknowledged += 1

    ready = threading.Event()
    publisher = connected("filler", lambda *_: ready.set())
    publisher.on_publish = on_publish
    published = 0
    while acknowledged < count:
        if publisher.loop(timeout=0.01) != mqtt.MQTT_ERR_SUCCESS:
            sys.exit("the connection broke")
        while ready.is_set() and published < count and published < acknowledged + WINDOW:
            publisher.publish(f"stock/{published % 5}", payload(published, size), 1)
            published += 1
    publisher.disconnect()
    print("filled", flush=True)


def drain(size):
    got, wrong = set(), []

    def on_message(client, data, message):
        text = message.payload.decode(errors="replace")
        number = text.split(" ")[0]
        if number.isdecimal() and text == payload(int(number), size):
            got.add(int(number))
        else:
            wrong.append(text[:100])

    print("draining", flush=True)
    while not stopping.is_set():
        try:
            client = connected("stock", lambda *_: None)
            client.on_message = on_message
            while client.loop(timeout=0.1) == mqtt.MQTT_ERR_SUCCESS and not stopping.is_set():
                pass
        except OSError:
            # Nobody listens at the moment.
            pass
        time.sleep(0.1)
    print(json.dumps({"got": sorted(got), "wrong": wrong}), flush=True)


{"fill": fill, "drain": drain}[what](*numbers)
