"""Publishes numbers with paho-mqtt at QoS 1, whatever the broker does, and prints what it answers.

Usage: mqtt_numbers.py PORT TOPIC USER PASSWORD RATE SIZE

The payload of number n is {"n": n, "pad": …}, SIZE random characters long; RATE is in a second, 0 is as fast as it goes. A
number is published once: what was not acknowledged when a connection broke is not sent again, so that none can come
twice by our doing. On SIGTERM it waits for what is on the way, prints "done" and ends.

Lines: "publishing" once connected first, then "acknowledged n" and "refused n CODE".
"""

import os
import signal
import sys
import time

import paho.mqtt.client as mqtt

# Publishes on the way at a time.
WINDOW = 100
# How long an answer may take before a connection is given up; only a broker that is gone takes so long.
PATIENCE = 30

port, topic, user, password, rate, size = sys.argv[1:]
port, rate, size = int(port), float(rate), int(size)
stopping = False
number = 0
said_publishing = False


def stop(*_):
    global stopping
    stopping = True


signal.signal(signal.SIGTERM, stop)


def say(*words):
    print(*words, flush=True)


class Connection:
    """One connection; those that follow know nothing of it."""

    def __init__(self):
        self.waiting = {}
        self.open = None
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.client.username_pw_set(user, password)
        self.client.on_connect = self.on_connect
        self.client.on_disconnect = self.on_disconnect
        self.client.on_publish = self.on_publish
        self.client.connect("127.0.0.1", port)

    def on_connect(self, client, data, flags, reason, properties):
        self.open = not reason.is_failure

    def on_disconnect(self, *_):
        self.open = False

    def on_publish(self, client, data, mid, reason, properties):
        n = self.waiting.pop(mid)
        if reason.is_failure:
            say("refused", n, hex(reason.value))
        else:
            say("acknowledged", n)

    def run(self):
        global number, said_publishing
        due = heard = time.monotonic()
        while self.open is not False:
            before = len(self.waiting)
            if self.client.loop(timeout=0.01) != mqtt.MQTT_ERR_SUCCESS:
                return
            now = time.monotonic()
            if len(self.waiting) < before or not self.waiting:
                heard = now
            if now - heard > PATIENCE:
                return
            if self.open and not said_publishing:
                said_publishing = True
                say("publishing")
            if stopping and not self.waiting:
                self.client.disconnect()
                return
            while self.open and not stopping and len(self.waiting) < WINDOW and now >= due:
                payload = f'{{"n":{number},"pad":"{os.urandom(size // 2).hex()}"}}'
                info = self.client.publish(topic, payload, qos=1)
                if info.rc != mqtt.MQTT_ERR_SUCCESS:
                    return
                self.waiting[info.mid] = number
                number += 1
                due = max(due, now - 1) + 1 / rate if rate else now


while not stopping:
    try:
        Connection().run()
    except OSError:
        # Nobody listens at the moment.
        pass
    if not stopping:
        time.sleep(0.2)
say("done")
