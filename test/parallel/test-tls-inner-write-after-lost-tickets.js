'use strict';

// TLS in TLS over a connection that is reset while TLS writes data of its own, such as session
// tickets. Node.js reports the failure of this write to nobody, and what JavaScript writes
// after it, and end(), never call back. This is so in Node without splices, and the reason
// why a splice looks for such a write itself. When this fails, Node has been mended.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');

const assert = require('assert');
const { once } = require('events');

const { record, run, socketPair, tlsOver, turns } = require('../common/tls-splice');

run(async () => {
  const { 0: raw, 1: mine } = await socketPair();
  const outer = tlsOver(raw, mine);
  await Promise.all([once(outer.client, 'secure'), once(outer.server, 'secure')]);
  const options = { minVersion: 'TLSv1.3', maxVersion: 'TLSv1.3' };
  const { client, server } = tlsOver(outer.client, outer.server, { server: options, client: options });
  for (const socket of [raw, outer.client, outer.server, client])
    socket.on('error', () => {});
  server.allowHalfOpen = true;
  client.resume();
  const events = record(server.resume(), ['error', 'finish', 'close']);
  await once(server, 'secure');
  // What fails is the tickets, which Node has written itself.
  raw.resetAndDestroy();
  await turns(1);
  server.end('never sent', common.mustNotCall());
  await turns(100);
  assert.deepStrictEqual(events, []);
  assert.strictEqual(server.destroyed, false);
  assert.strictEqual(outer.server.destroyed, false);
});
