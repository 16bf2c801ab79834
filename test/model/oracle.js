'use strict';

// What must arrive where. A stream's bytes follow from their positions, so that
// it is enough to know which part of which stream comes next.

const { createCipheriv } = require('crypto');

const kMaxChunk = 2 ** 20;
const kPeriod = kMaxChunk + 7;

// Nothing that OpenSSL's s_client takes for a command.
const noise = (() => {
  const cipher = createCipheriv('aes-128-ctr', Buffer.alloc(16), Buffer.alloc(16));
  const period = cipher.update(Buffer.alloc(kPeriod));
  for (let i = 0; i < period.length; i++)
    period[i] |= 0x80;
  return Buffer.concat([period, period]);
})();

class Failure extends Error {}

function fail(message) {
  throw new Failure(message);
}

// What somebody writes.
class Stream {
  #offset;
  name;
  written = 0;
  ended = false;
  // How much of it has come out somewhere.
  seen = 0;

  constructor(name, number) {
    this.name = name;
    this.#offset = number * 123457;
  }

  // The next bytes of it; not to be changed.
  next(length) {
    const chunk = this.#slice(this.written, length);
    this.written += length;
    return chunk;
  }

  check(chunk, position, who) {
    if (position + chunk.length > this.written)
      fail(`${who} got more than there is of ${this.name}: ${position} + ${chunk.length} > ${this.written}`);
    for (let at = 0; at < chunk.length; at += kMaxChunk) {
      const part = chunk.subarray(at, at + kMaxChunk);
      const expected = this.#slice(position + at, part.length);
      if (!part.equals(expected)) {
        const first = part.findIndex((byte, i) => byte !== expected[i]);
        fail(`${who} got another byte than that at ${position + at + first} of ${this.name}${this.#find(part, first)}`);
      }
    }
    this.seen += chunk.length;
  }

  // For the message: where the bytes are from.
  #find(chunk, first) {
    const probe = chunk.subarray(first, first + 16);
    const at = probe.length < 16 ? -1 : noise.indexOf(probe);
    return at < 0 ? '' : `, but the one at ${(at - this.#offset % kPeriod + kPeriod) % kPeriod}`;
  }

  #slice(position, length) {
    const start = (position + this.#offset) % kPeriod;
    return noise.subarray(start, start + length);
  }
}

// What somebody reads: parts of streams, one after the other. The length of a part is
// unknown as long as it goes on.
class Receiver {
  #parts = [];
  name;

  constructor(name) {
    this.name = name;
  }

  // `soFar`: how many bytes of the part have been sent by now.
  open(stream, position, soFar) {
    const part = { stream, position, taken: 0, length: undefined, soFar };
    this.#parts.push(part);
    return part;
  }

  add(stream, position, length) {
    this.open(stream, position).length = length;
  }

  close(part, length) {
    if (part.taken > length)
      fail(`${this.name} got ${part.taken} bytes of ${part.stream.name}, and the splice counts ${length}`);
    part.length = length;
  }

  accept(chunk) {
    while (chunk.length > 0) {
      const { 0: part } = this.#parts;
      if (part === undefined)
        fail(`${this.name} got ${chunk.length} bytes that nobody sent`);
      // What has arrived was sent before. So bytes behind those that have been sent of a part
      // that goes on are of the next part.
      const length = part.length ?? (this.#parts.length > 1 ? part.soFar() : Infinity);
      if (part.taken === length) {
        this.#parts.shift();
        continue;
      }
      const mine = chunk.subarray(0, length - part.taken);
      part.stream.check(mine, part.position + part.taken, this.name);
      part.taken += mine.length;
      chunk = chunk.subarray(mine.length);
    }
  }

  // How much has not come yet of what is known to have been sent.
  get missing() {
    return this.#parts.reduce((sum, { length, taken }) => sum + (length ?? taken) - taken, 0);
  }
}

module.exports = { Failure, Receiver, Stream, fail };
