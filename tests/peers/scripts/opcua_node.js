// An OPC UA server of node-opcua, as a bottling line that tests can follow: the same as opcua_asyncua.py.
//
// usage: node opcua_node.js PORT DIRECTORY [OPTION...]
//   swap          registers the namespaces in the other order, as a server may after a restart
//   no-transfer   knows no TransferSubscriptions, as some PLCs
//   chain         presents its certificate with that of its authority behind it: DIRECTORY/chain.pem and key.pem
"use strict";
const fs = require("fs");
const path = require("path");
const opcua = require(path.join(process.cwd(), "node_modules/node-opcua"));

const [PLANT, OTHER, APPLICATION] = ["plant", "other", "node-opcua"].map((name) => `urn:foreshore:peer:${name}`);
const TICK = 50;
const [port, directory, ...options] = process.argv.slice(2);
const { DataType, StatusCodes, MessageSecurityMode, SecurityPolicy } = opcua;

function users() {
  return {
    isValidUser(name, password) {
      const good = name === "operator" && password === "bottles";
      console.log("login", name, good ? "accepted" : "refused");
      return good;
    },
  };
}

function structures(space, namespace) {
  const type = (name) => space.findDataType(name).nodeId;
  const field = (name, dataType, valueRank = -1, isOptional = false) => ({ name, dataType, valueRank, isOptional, description: null });
  const point = namespace.createDataType({ browseName: "Point", isAbstract: false, subtypeOf: "Structure",
    partialDefinition: [field("X", type("Double")), field("Y", type("Double"))] });
  const mode = namespace.createDataType({ browseName: "Mode", isAbstract: false, subtypeOf: "Enumeration",
    partialDefinition: ["Idle", "Running", "Fault"].map((name, value) => ({ name, value })) });
  const status = namespace.createDataType({ browseName: "Status", isAbstract: false, subtypeOf: "Structure",
    partialDefinition: [field("Position", point.nodeId), field("Path", point.nodeId, 1), field("Counts", type("Int32"), 1),
      field("Mode", mode.nodeId), field("Note", type("String"), -1, true)] });
  // With the same identifiers in the other namespace: who keeps the numbers of before takes one for the other.
  const others = space.getNamespace(OTHER);
  const other = others.createDataType({ browseName: "Other", isAbstract: false, subtypeOf: "Structure", partialDefinition: [field("Z", type("Int64"))] });
  for (const [owner, name, structure] of [[namespace, "point", point], [namespace, "status", status], [others, "point", other], [others, "status", other]]) {
    const encoding = owner.addObject({ nodeId: `s=${name}.Binary`, browseName: opcua.coerceQualifiedName("0:Default Binary"), typeDefinition: "DataTypeEncodingType" });
    structure.addReference({ referenceType: "HasEncoding", isForward: true, nodeId: encoding });
  }
  return { point, mode, status };
}

async function line(space, namespace) {
  const { point, mode, status } = structures(space, namespace);
  await opcua.ensureDatatypeExtracted(space);
  const object = namespace.addObject({ organizedBy: space.rootFolder.objects, nodeId: "s=Line", browseName: "Line",
    eventNotifier: 1, notifierOf: space.rootFolder.objects.server });
  const variable = (name, dataType, value, more = {}) => {
    const node = namespace.addVariable({ componentOf: object, nodeId: `s=Line.${name}`, browseName: name, dataType, minimumSamplingInterval: 0, accessLevel: "CurrentRead", userAccessLevel: "CurrentRead", ...more });
    node.setValueFromSource(value);
    return node;
  };
  const counter = variable("Counter", "UInt32", { dataType: "UInt32", value: 0 });
  const level = variable("Level", "Double", { dataType: "Double", value: 0 });
  const points = [{ x: 1, y: 2 }, { x: 3, y: 4 }].map((value) => space.constructExtensionObject(point, value));
  const value = space.constructExtensionObject(status, { position: { x: 1, y: 2 }, path: [{ x: 1, y: 2 }, { x: 3, y: 4 }], counts: [1, 2, 3], mode: 1 });
  variable("Status", status, { dataType: "ExtensionObject", value });
  variable("Path", point, { dataType: "ExtensionObject", arrayType: "Array", value: points }, { valueRank: 1 });
  variable("Mode", mode, { dataType: "Int32", value: 1 });
  const writable = { accessLevel: "CurrentRead | CurrentWrite", userAccessLevel: "CurrentRead | CurrentWrite" };
  variable("Setpoint", "Double", { dataType: "Double", value: 20 }, writable);
  variable("Recipe", "Int32", { dataType: "Int32", arrayType: "Array", value: new Int32Array([1, 2, 3]) }, { valueRank: 1, ...writable });
  const stamped = variable("Stamped", "UInt32", { dataType: "UInt32", value: 7 });
  stamped.setValueFromSource({ dataType: "UInt32", value: 7 }, StatusCodes.Good, new Date("2020-01-02T03:04:05.678Z"));
  variable("Moment", "DateTime", { dataType: "DateTime", value: new Date("2020-01-02T03:04:05.678Z") });
  const argument = (name) => ({ name, dataType: "Int32" });
  namespace.addMethod(object, { nodeId: "s=Line.Add", browseName: "Add", inputArguments: [argument("a"), argument("b")], outputArguments: [argument("sum")] })
    .bindMethod((inputs, _context, done) => done(null, { statusCode: StatusCodes.Good,
      outputArguments: [{ dataType: DataType.Int32, value: inputs[0].value + inputs[1].value }] }));
  namespace.addMethod(object, { nodeId: "s=Line.Fail", browseName: "Fail", inputArguments: [], outputArguments: [] })
    .bindMethod((_inputs, _context, done) => done(null, { statusCode: StatusCodes.BadOutOfRange, outputArguments: [] }));
  const event = namespace.addEventType({ nodeId: "s=CycleEvent", browseName: "CycleEvent", subtypeOf: "BaseEventType" });
  namespace.addVariable({ propertyOf: event, browseName: "Cycle", dataType: "UInt32", modellingRule: "Mandatory" });
  return { object, counter, level, event };
}

function tick({ object, counter, level, event }) {
  let count = 0;
  setInterval(() => {
    count += 1;
    counter.setValueFromSource({ dataType: "UInt32", value: count });
    level.setValueFromSource({ dataType: "Double", value: count * 0.25 + Math.floor(count / 8) * 10 });
    if (count % 10 === 0) {
      object.raiseEvent(event, {
        message: { dataType: "LocalizedText", value: `cycle ${count / 10}` },
        severity: { dataType: "UInt16", value: count % 20 === 0 ? 400 : 100 },
        cycle: { dataType: "UInt32", value: count / 10 },
      });
    }
  }, TICK);
}

async function main() {
  const chain = options.includes("chain")
    ? { certificateFile: path.join(directory, "chain.pem"), privateKeyFile: path.join(directory, "key.pem") } : {};
  const certificates = new opcua.OPCUACertificateManager({ automaticallyAcceptUnknownCertificate: true, rootFolder: path.join(directory, "pki") });
  const server = new opcua.OPCUAServer({
    port: Number(port), hostname: "127.0.0.1", alternateHostname: ["localhost"], ...chain,
    serverInfo: { applicationUri: options.includes("chain") ? "urn:foreshore:peer:asyncua" : APPLICATION },
    // Only a server that says 0 here hands out every change.
    serverCapabilities: { minSupportedSampleRate: 0 },
    serverCertificateManager: certificates, allowAnonymous: true, userManager: users(),
    securityPolicies: [SecurityPolicy.None, SecurityPolicy.Basic256Sha256],
    securityModes: [MessageSecurityMode.None, MessageSecurityMode.Sign, MessageSecurityMode.SignAndEncrypt],
  });
  await server.initialize();
  const space = server.engine.addressSpace;
  for (const name of options.includes("swap") ? [PLANT, OTHER] : [OTHER, PLANT]) space.registerNamespace(name);
  const changing = await line(space, space.getNamespace(PLANT));
  if (options.includes("no-transfer")) {
    server.engine.transferSubscription = async () => new opcua.TransferResult({ statusCode: StatusCodes.BadServiceUnsupported });
  }
  await server.start();
  fs.writeFileSync(path.join(directory, "certificate.der"), server.getCertificate());
  fs.writeFileSync(path.join(directory, "event-type"), `nsu=${PLANT};s=CycleEvent`);
  process.on("SIGUSR2", () => {
    for (const session of server.engine.getSessions()) server.engine.closeSession(session.authenticationToken, false, "Timeout");
  });
  tick(changing);
  console.log("ready");
  setInterval(() => console.log(`sessions=${server.engine.currentSessionCount} subscriptions=${server.engine.currentSubscriptionCount}`), 500);
}

main().catch((error) => {
  console.error(error);
  process.exit(1);
});
