// Asks fathom a question about a file: uploads it, creates a run, watches it, prints the answer.
//
//   node ask.mjs [https://]HOST:PORT "QUESTION" FILE
//
// The answer goes to stdout, progress to stderr. The exit status is 0 when the question was
// answered, 3 for a partial answer, 4 when the server does not let us, 5 when it is not reached
// and 1 when there is no answer for another reason. access.mjs has API keys and TLS.

import { randomUUID } from 'node:crypto'
import { createReadStream } from 'node:fs'
import { basename } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

import grpc from '@grpc/grpc-js'
import protoLoader from '@grpc/proto-loader'

import { accessTo } from './access.mjs'

const PROTO_FOLDERS = ['../../protos', '../../third_party/googleapis'].map((folder) =>
  fileURLToPath(new URL(folder, import.meta.url))
)
const CHUNK_BYTES = 1024 * 1024
const UPLOAD_TIMEOUT_S = 600
const CALL_TIMEOUT_S = 30
const RUN_TIMEOUT_S = 3600
const ATTEMPTS = 10
const PASSING = new Set([grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED])
const NOTHING_KEPT = {}
const NANOS_PER_USD = 1e9
const EXIT_STATUS = { STATE_ANSWERED: 0, STATE_PARTIAL: 3 }
const EXIT_STATUS_OF_ERROR = {
  [grpc.status.UNAUTHENTICATED]: 4,
  [grpc.status.PERMISSION_DENIED]: 4,
  [grpc.status.UNAVAILABLE]: 5
}

function loadServices() {
  const files = ['context_service.proto', 'orchestrator_service.proto']
  const definition = protoLoader.loadSync(
    files.map((file) => `fathom/orchestrator/v1/${file}`),
    { includeDirs: PROTO_FOLDERS, keepCase: true, longs: Number, enums: String, oneofs: true }
  )
  return grpc.loadPackageDefinition(definition).fathom.orchestrator.v1
}

const after = (seconds) => ({ deadline: Date.now() + seconds * 1000 })
const pause = (attempt) => new Promise((resolve) => setTimeout(resolve, 200 * attempt))

// Makes a call until it succeeds, or fails for a reason that does not pass. One that has not
// begun is not made again: a server that is not there is told at once.
async function persistently(call, hasBegun = () => true) {
  for (let attempt = 1; ; attempt++) {
    try {
      return await call(attempt)
    } catch (error) {
      if (!PASSING.has(error.code) || !hasBegun() || attempt === ATTEMPTS) throw error
    }
    await pause(attempt)
  }
}

// Uploads the file. Where the connection breaks, the upload goes on with what the server has kept.
async function upload(contexts, path) {
  const id = randomUUID()
  let hasBegun = false
  return persistently(
    async (attempt) => {
      const kept = attempt === 1 ? NOTHING_KEPT : await keptOf(contexts, id)
      return kept.context ?? send(contexts, path, id, kept.bytes_kept ?? 0, () => (hasBegun = true))
    },
    () => hasBegun
  )
}

async function keptOf(contexts, id) {
  const getUpload = promisify(contexts.GetUpload.bind(contexts))
  try {
    return await getUpload({ upload_id: id }, after(CALL_TIMEOUT_S))
  } catch (error) {
    if (error.code !== grpc.status.NOT_FOUND) throw error
    return NOTHING_KEPT
  }
}

// Sends the file but for its first bytes, in chunks, each once the one before has left.
async function send(contexts, path, id, start, onSent) {
  let call
  const stored = new Promise((resolve, reject) => {
    call = contexts.UploadContext(after(UPLOAD_TIMEOUT_S), (error, response) =>
      error ? reject(error) : resolve(response.context)
    )
  })
  stored.catch(() => {}) // Reported by whoever awaits it below.
  const write = async (message) => {
    const sent = new Promise((resolve) => call.write(message, () => resolve()))
    // A server that refuses the upload takes no more of it: the refusal ends the wait.
    await Promise.race([stored, sent])
  }
  await write({ start: { kind: 'KIND_TEXT', title: basename(path), upload_id: id } })
  let offset = start
  for await (const data of createReadStream(path, { start, highWaterMark: CHUNK_BYTES })) {
    await write({ chunk: { offset_bytes: offset, data } })
    // Under TLS the first ones leave before the server has said whether it lets us in.
    if (offset > start) onSent()
    offset += data.length
  }
  call.end()
  return stored
}

// Yields the run's events up to the last one. A connection that breaks is made again, and the
// events go on where they stopped.
async function* watch(orchestrator, name) {
  let sequence = 0
  for (let attempt = 1; ; attempt++) {
    const request = { name, after_sequence: sequence }
    try {
      for await (const { event } of orchestrator.WatchRun(request, after(RUN_TIMEOUT_S))) {
        sequence = event.sequence
        attempt = 1
        yield event
      }
      return
    } catch (error) {
      if (!PASSING.has(error.code) || attempt === ATTEMPTS) throw error
    }
    await pause(attempt)
  }
}

// What the run cost as far as is known: calls that were cut off are counted after its end.
function costText(run) {
  const text = `$${((run.usage?.cost_usd_nanos ?? 0) / NANOS_PER_USD).toFixed(6)}`
  return run.usage_incomplete ? `at least ${text}` : text
}

async function ask(address, question, path) {
  const services = loadServices()
  const { target, credentials, options } = accessTo(address)
  const contexts = new services.ContextService(target, credentials, options)
  const orchestrator = new services.OrchestratorService(target, credentials, options)
  const createRun = promisify(orchestrator.CreateRun.bind(orchestrator))

  const context = await upload(contexts, path)
  const request = { spec: { question, context: context.name }, request_id: randomUUID() }
  const { run } = await persistently(() => createRun(request, after(CALL_TIMEOUT_S)))
  console.error(run.name)

  let last = run
  for await (const event of watch(orchestrator, run.name)) {
    if (event.turn_started) console.error(`turn ${event.turn}`)
    if (event.run_changed) last = event.run_changed
  }
  if (last.answer) console.log(last.answer.text)
  if (last.error) console.error(`${last.state}: ${last.error.message}`)
  console.error(`cost: ${costText(last)}`)
  return EXIT_STATUS[last.state] ?? 1
}

const [address, question, path] = process.argv.slice(2)
if (!path) {
  console.error('usage: node ask.mjs [https://]HOST:PORT "QUESTION" FILE')
  process.exit(2)
}
try {
  process.exit(await ask(address, question, path))
} catch (error) {
  console.error(`error: ${error.message}`)
  process.exit(EXIT_STATUS_OF_ERROR[error.code] ?? 1)
}
