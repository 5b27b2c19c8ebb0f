"""ipycam on 127.0.0.1 without pictures, which tells what its motors were told.

usage: commanded_camera.py PORT

It prints `camera is ready`, then `motors to PAN TILT ZOOM` for each movement to a place.
"""

import sys
import threading

import ipycam.camera as parts
from ipycam import CameraConfig, IPCamera


class NoDiscovery:
    def __init__(self, onvif):
        pass

    def start(self):
        pass

    def stop(self):
        pass


class Loopback(parts.ReusableThreadingTCPServer):
    def __init__(self, address, handler):
        super().__init__(("127.0.0.1", address[1]), handler)


class Motors:
    def on_absolute_move(self, pan, tilt, zoom):
        print("motors to", pan, tilt, zoom, flush=True)


parts.WSDiscoveryServer = NoDiscovery
parts.ReusableThreadingTCPServer = Loopback
for encoder in ("check_go2rtc_running", "check_rtsp_port_available", "is_native_rtsp_available", "is_webrtc_available"):
    setattr(parts, encoder, lambda *args, **kwargs: False)

camera = IPCamera(CameraConfig(local_ip="127.0.0.1", onvif_port=int(sys.argv[1]), username="admin", password="secret"))
camera.ptz.add_hardware_handler(Motors())
assert camera.start()
print("camera is ready", flush=True)
threading.Event().wait()
