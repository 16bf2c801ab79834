'use strict';

// start() and stop() while a part of a record has arrived, wherever it is cut:
// the record goes, as a whole, to whoever reads when its end arrives.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');
const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const {
  run, socketPair, tlsOver, turns,
} = require('../common/tls-splice');

// A client and a server, and what is in between: the client's ciphertext is
// collected, and passed on as it is asked for.
async function relayed(options) {
  const { 0: a, 1: clientRelay } = await socketPair();
  const { 0: b, 1: serverRelay } = await socketPair();
  let held = [];
  let arrived = () => {};
  let open = true;
  clientRelay.on('data', (chunk) => {
    if (open) {
      serverRelay.write(chunk);
    } else {
      held.push(chunk);
      arrived();
    }
  });
  serverRelay.pipe(clientRelay);
  const { client, server } = tlsOver(a, b, { allowHalfOpen: true, ...options });
  await Promise.all([once(client, 'secureConnect'), once(server, 'secure')]);
  // Tickets, and the last messages of the handshake
  await turns(50);
  open = false;
  return {
    client,
    server,
    serverRelay,
    // The ciphertext of `text`, a record.
    async record(text) {
      const written = new Promise((resolve) => { arrived = resolve; });
      client.write(text);
      await written;
      const record = Buffer.concat(held);
      held = [];
      assert.strictEqual(record.length, 5 + record.readUInt16BE(3));
      return record;
    },
  };
}

for (const version of ['TLSv1.2', 'TLSv1.3']) {
  run(async () => {
    const { server, serverRelay, record } = await relayed({
      minVersion: version, maxVersion: version,
    });
    const { 0: endpoint, 1: other } = await socketPair();
    let atJS = '';
    let atEndpoint = '';
    server.on('data', (chunk) => atJS += chunk);
    other.on('data', (chunk) => atEndpoint += chunk);
    let bytesIn = 0;
    let length;
    for (let cut = 1, i = 0; length === undefined || cut < length; cut++) {
      const text = `record ${i++}\n`.padStart(12, '-');
      const bytes = await record(text);
      length = bytes.length;
      // Half of it comes to JS, and the other half to the splice.
      serverRelay.write(bytes.subarray(0, cut));
      await turns(5);
      const splice = server.spliceTo({
        stream: endpoint, direction: 'in', highWaterMark: cut % 2 ? undefined : 20,
      }).start();
      serverRelay.write(bytes.subarray(cut));
      while (atEndpoint.length < text.length)
        await once(other, 'data');
      assert.strictEqual(atEndpoint, text);
      atEndpoint = '';

      // The other way round
      const next = `record ${i++}\n`.padStart(12, '-');
      const after = await record(next);
      serverRelay.write(after.subarray(0, cut));
      await turns(5);
      bytesIn += (await splice.stop()).bytesIn;
      serverRelay.write(after.subarray(cut));
      while (atJS.length < next.length)
        await once(server, 'data');
      assert.strictEqual(atJS, next);
      assert.strictEqual(atEndpoint, '');
      atJS = '';
    }
    assert.strictEqual(bytesIn, 12 * (length - 1));
    assert.strictEqual(server.bytesRead, 24 * (length - 1));
  });

  // Records that arrive together with a part of the next one
  run(async () => {
    const { client, server, serverRelay, record } = await relayed({
      minVersion: version, maxVersion: version,
    });
    const { 0: endpoint, 1: other } = await socketPair();
    const texts = ['one ', 'two ', 'three ', 'four'];
    const records = [];
    for (const text of texts)
      records.push(await record(text));
    const all = Buffer.concat(records);
    const cut = all.length - 7;
    let atJS = '';
    server.once('data', common.mustCall((chunk) => {
      atJS += chunk;
      server.spliceTo({ stream: endpoint, direction: 'in' }).start();
    }));
    serverRelay.write(all.subarray(0, cut));
    while (other.readableLength < 'two three '.length)
      await once(other, 'readable');
    assert.strictEqual(`${other.read()}`, 'two three ');
    assert.strictEqual(atJS, 'one ');
    serverRelay.write(all.subarray(cut));
    assert.strictEqual(`${(await once(other, 'data'))[0]}`, 'four');
    client.destroy();
    // Cut off without a close_notify, the connection has ended nevertheless.
    serverRelay.end();
    await once(other, 'end');
  });
}
