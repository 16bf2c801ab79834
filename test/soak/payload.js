'use strict';

// What soak.js sends and looks for. Each payload is the same pseudo-random block
// over and over, from another place on. The length of the block is a prime: at no
// distance that a buffer could have is it like itself.

const kBlock = 1048573;

// Numbers in [0, 1), the same ones for the same seed.
function generator(seed) {
  let state = seed >>> 0;
  return () => {
    state = state + 0x6d2b79f5 >>> 0;
    let t = Math.imul(state ^ state >>> 15, state | 1);
    t ^= t + Math.imul(t ^ t >>> 7, t | 61);
    return ((t ^ t >>> 14) >>> 0) / 2 ** 32;
  };
}

const block = Buffer.alloc(kBlock);
{
  const random = generator(1);
  for (let i = 0; i < kBlock; i++)
    block[i] = random() * 256;
}

// At most `length` bytes of a payload from `offset` on, at least one.
function payloadAt(number, offset, length) {
  const start = (number * 7919 + offset) % kBlock;
  return block.subarray(start, Math.min(start + length, kBlock));
}

// Throws at the first chunk that is not what comes next.
class Receiver {
  #number;

  constructor(number, offset = 0) {
    this.#number = number;
    this.bytes = offset;
  }

  update(chunk) {
    for (let at = 0; at < chunk.length;) {
      const expected = payloadAt(this.#number, this.bytes, chunk.length - at);
      if (expected.compare(chunk, at, at + expected.length) !== 0) {
        throw new Error(`payload ${this.#number} has another byte in the ${expected.length} bytes from ` +
                        `${this.bytes} on`);
      }
      at += expected.length;
      this.bytes += expected.length;
    }
  }
}

module.exports = {
  Receiver,
  generator,
  payloadAt,
  // By the number of the splice
  payloadIn: (id) => 2 * id,
  payloadOut: (id) => 2 * id + 1,
};
