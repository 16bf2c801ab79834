'use strict';

// Packets for a router: flows of TCP and UDP over IPv4 and IPv6, most of which can be joined, and what can not. They are
// made without anything of what the tests are for.

const { randomBytes, randomInt } = require('crypto');

const kAddresses = {
  4: Buffer.from([10, 0, 0, 1, 198, 51, 100, 2]),
  6: Buffer.from(`fd00${'0'.repeat(27)}1fd01${'0'.repeat(27)}2`, 'hex'),
};
const kDF = 0x4000;
const kFlags = { FIN: 1, SYN: 2, RST: 4, PSH: 8, ACK: 16, URG: 32, ECE: 64, CWR: 128 };
// As scanners send them: none, FIN alone, "Xmas", SYN and FIN, all.
const kOddFlags = [0, 1, 0x29, 3, 0xff];

// The checksum of RFC 1071.
function checksum(...parts) {
  let sum = 0;
  for (const part of parts) {
    for (let i = 0; i < part.length; i += 2)
      sum += part[i] * 256 + (part[i + 1] ?? 0);
  }
  while (sum > 0xffff)
    sum = (sum & 0xffff) + Math.floor(sum / 0x10000);
  return ~sum & 0xffff;
}

function transport({ version, isUdp, port, seq, flags, options }, payload) {
  const header = Buffer.alloc(isUdp ? 8 : 20 + options.length);
  header.writeUInt16BE(port);
  header.writeUInt16BE(9, 2);
  const length = header.length + payload.length;
  if (isUdp) {
    header.writeUInt16BE(length, 4);
  } else {
    header.writeUInt32BE(seq, 4);
    header.writeUInt32BE(7, 8);
    header[12] = header.length * 4;
    header[13] = flags;
    header.writeUInt16BE(500, 14);
    options.copy(header, 20);
  }
  const pseudo = Buffer.from([...kAddresses[version], length >> 8, length & 255, 0, isUdp ? 17 : 6]);
  const sum = checksum(pseudo, header, payload);
  header.writeUInt16BE(isUdp ? sum || 0xffff : sum, isUdp ? 6 : 16);
  return Buffer.concat([header, payload]);
}

function packetOf(flow, payload) {
  const { version, isUdp, tos, id, fragment, hops } = flow;
  const body = transport(flow, payload);
  const header = Buffer.alloc(version === 4 ? 20 : 40);
  if (version === 4) {
    header[0] = 0x45;
    header[1] = tos;
    header.writeUInt16BE(20 + body.length, 2);
    header.writeUInt16BE(id, 4);
    header.writeUInt16BE(fragment, 6);
    header[8] = hops;
    header[9] = isUdp ? 17 : 6;
    kAddresses[4].copy(header, 12);
    header.writeUInt16BE(checksum(header), 10);
  } else {
    header.writeUInt32BE(0x60000000 + tos * 0x100000 + flow.port);
    header.writeUInt16BE(body.length, 4);
    header[6] = isUdp ? 17 : 6;
    header[7] = hops;
    kAddresses[6].copy(header, 8);
  }
  return Buffer.concat([header, body]);
}

function makeFlow(port) {
  const isUdp = randomInt(2) === 1;
  return {
    port,
    isUdp,
    version: randomInt(2) ? 4 : 6,
    tos: randomInt(4) * 64 + randomInt(4),
    id: randomInt(0x10000),
    isIdConstant: randomInt(3) === 0,
    fragment: randomInt(3) ? kDF : 0,
    hops: 2 + randomInt(200),
    seq: randomInt(2 ** 32),
    flags: kFlags.ACK,
    options: randomInt(2) ? Buffer.from('0101080a0000000100000002', 'hex') : Buffer.alloc(0),
    size: 1 + randomInt([20, 500, 1400][randomInt(3)]),
  };
}

// The next packet of a flow, which most often can be joined to the one before.
function next(flow) {
  const what = randomInt(40);
  const now = { ...flow };
  if (what === 0)
    now.size = 1 + randomInt(flow.size);
  else if (what === 1)
    now.flags |= kFlags.PSH;
  else if (what === 2)
    now.flags |= [kFlags.FIN, kFlags.ECE, kFlags.CWR, kFlags.ECE | kFlags.CWR][randomInt(4)];
  else if (what === 3)
    now.flags = kOddFlags[randomInt(kOddFlags.length)];
  else if (what === 4)
    now.seq = (flow.seq + randomInt(5000)) % 2 ** 32;
  else if (what === 5)
    now.id = randomInt(0x10000);
  else if (what === 6)
    now.tos ^= 3;
  else if (what === 7)
    now.hops++;
  const packet = packetOf(now, randomBytes(now.size));
  flow.seq = (now.seq + now.size) % 2 ** 32;
  flow.id = (now.id + (flow.isIdConstant ? 0 : 1)) % 0x10000;
  // A wrong checksum of TCP or UDP, which is for the host to see.
  if (what === 8)
    packet[packet.length - 1] ^= 1;
  return packet;
}

// So many packets of a few flows at a time, and one more of a flow of its own.
function makePackets(count) {
  const packets = [];
  let port = 1000;
  while (packets.length < count) {
    const flows = Array.from({ length: 1 + randomInt(5) }, () => makeFlow(port++));
    for (let i = randomInt(20); i >= 0; i--) {
      const flow = flows[randomInt(flows.length)];
      for (let j = randomInt(20); j >= 0; j--)
        packets.push(next(flow));
    }
  }
  packets.push(next(makeFlow(port)));
  return packets;
}

// A packet as it leaves a router.
function forwarded(packet) {
  const sent = Buffer.from(packet);
  if (sent[0] >> 4 === 4) {
    sent[8]--;
    sent.writeUInt16BE(0, 10);
    sent.writeUInt16BE(checksum(sent.subarray(0, 20)), 10);
  } else {
    sent[7]--;
  }
  return sent;
}

// Whether the packet is one of these.
function isFor(packet) {
  const version = packet[0] >> 4;
  return kAddresses[version]?.equals(version === 4 ? packet.subarray(12, 20) : packet.subarray(8, 40)) &&
    [6, 17].includes(packet[version === 4 ? 9 : 6]);
}

// The packets of each flow in order. The identification has no meaning in a packet of IPv4 with DF (RFC 6864), and is left
// out there.
function byFlow(packets) {
  const flows = {};
  for (const packet of packets) {
    const isV4 = packet[0] >> 4 === 4;
    const shown = Buffer.from(packet);
    if (isV4 && packet.readUInt16BE(6) === kDF)
      shown.fill(0, 4, 6).fill(0, 10, 12);
    const port = packet.readUInt16BE(isV4 ? 20 : 40);
    (flows[port] ??= []).push(shown.toString('hex'));
  }
  return flows;
}

module.exports = { byFlow, forwarded, isFor, makePackets };
