// What to show an orchestrator, and whom to trust: an API key and certificates, as the environment
// says. The variables are those of the `fathom` command.

import { readFileSync } from 'node:fs'

import grpc from '@grpc/grpc-js'

// Without the first two a server whose machine has lost its power would be listened to for ever.
// Calls are made again by ask.mjs: the library tells that it has sent what it keeps for that.
const CONNECTION = {
  'grpc.keepalive_time_ms': 30_000,
  'grpc.keepalive_timeout_ms': 10_000,
  'grpc.enable_retries': 0
}

// Returns the target, credentials and options of a client for HOST:PORT, over TLS for
// https://HOST:PORT or where a file for TLS is named. Throws where a file cannot be used.
export function accessTo(address, environ = process.env) {
  const files = ['CA', 'KEY', 'CERTIFICATE'].map((kind) => environ[`FATHOM_TLS_${kind}_FILE`])
  const [scheme, target] = address.includes('://') ? address.split('://') : ['', address]
  const isTls = scheme === 'https' || (scheme === '' && files.some(Boolean))
  const apiKey = (environ.FATHOM_API_KEY ?? '').trim()
  if (!/^[!-~]*$/.test(apiKey)) throw new Error('FATHOM_API_KEY has characters that cannot be sent')
  return {
    target: target.replace(/\/+$/, ''),
    credentials: isTls ? tlsCredentials(files) : grpc.credentials.createInsecure(),
    options: { ...CONNECTION, interceptors: apiKey ? [bringing(apiKey)] : [] }
  }
}

function tlsCredentials(files) {
  const [ca, key, certificate] = files.map((path) => (path ? readFileSync(path) : null))
  if ((key === null) !== (certificate === null)) {
    throw new Error('FATHOM_TLS_KEY_FILE and FATHOM_TLS_CERTIFICATE_FILE belong together')
  }
  return grpc.credentials.createSsl(ca, key, certificate)
}

// Returns an interceptor that adds the key to each call. Call credentials would need TLS, which a
// server on the same machine may do without.
function bringing(apiKey) {
  return (options, nextCall) =>
    new grpc.InterceptingCall(nextCall(options), {
      start(metadata, listener, next) {
        metadata.set('authorization', `Bearer ${apiKey}`)
        next(metadata, listener)
      }
    })
}
