// Answers questions to IAM: a JSON list of simulations on stdin, a JSON list of answers on stdout
// (Allowed, ExplicitlyDenied, ImplicitlyDenied, or "error: ..."). The argument is the folder that
// holds node_modules.
import { readFileSync } from 'node:fs'
import { createRequire } from 'node:module'

const require = createRequire(`${process.argv[2]}/`)
const { runSimulation } = require('@cloud-copilot/iam-simulate')

async function answer(simulation) {
  const answered = await runSimulation(simulation, {})
  if (answered.resultType === 'error') {
    return `error: ${JSON.stringify(answered.errors)}`
  }
  if (answered.resultType === 'single' && answered.result.ignoredContextKeys?.length) {
    // A condition key that the action does not know: the question asks for something else.
    return `error: ignored ${answered.result.ignoredContextKeys}`
  }
  return answered.overallResult
}

const answers = []
for (const simulation of JSON.parse(readFileSync(0, 'utf8'))) {
  answers.push(await answer(simulation))
}
console.log(JSON.stringify(answers))
