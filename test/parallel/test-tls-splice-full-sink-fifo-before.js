'use strict';

// What fails behind bytes that are held for a full sink: see test/common/tls-splice-full-sink.js.

const common = require('../common');
if (!common.hasCrypto)
  common.skip('missing crypto');
if (common.isWindows)
  common.skip('no FIFOs on Windows');

const tls = require('tls');
if (tls.TLSSplice === undefined)
  common.skip('built without TLSSplice');

const { testFaults } = require('../common/tls-splice-full-sink');

testFaults('a FIFO', 'before');
