// Encrypts as the existing Node tool does. Argument: key in hex. Standard input: one plaintext in
// hex per line. Standard output: one ENC: value per line.
'use strict';
const { createCipheriv, randomBytes } = require('node:crypto');

const key = Buffer.from(process.argv[2], 'hex');
const lines = require('node:fs').readFileSync(0, 'utf8').split('\n').slice(0, -1);
for (const line of lines) {
  const iv = randomBytes(16);
  const cipher = createCipheriv('aes-256-gcm', key, iv);
  const ciphertext = Buffer.concat([cipher.update(Buffer.from(line, 'hex')), cipher.final()]);
  const fields = [iv, cipher.getAuthTag(), ciphertext].map((field) => field.toString('hex'));
  console.log(`ENC:${fields.join(':')}`);
}
