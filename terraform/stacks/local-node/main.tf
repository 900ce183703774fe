# The agent process that is the node of one attempt.
resource "terraform_data" "node" {
  input            = { mlinfra = var.mlinfra, agent = var.agent }
  triggers_replace = [var.mlinfra.lease_id, var.mlinfra.attempt]

  # Arguments, not a shell line: the interpreter gets the command as its last argument.
  provisioner "local-exec" {
    interpreter = [var.agent.python, "-I", "-S", var.agent.archive, "spawn"]
    command     = var.agent.spec
    quiet       = true
    environment = {
      MLINFRA_LEDGER_ID = var.mlinfra.ledger_id
      MLINFRA_LEASE_ID  = var.mlinfra.lease_id
      MLINFRA_ATTEMPT   = var.mlinfra.attempt
      MLINFRA_DEADLINE  = var.mlinfra.deadline
    }
  }

  # Reads the state only, so that it also runs when the variables are gone. The agent does not depend on it.
  provisioner "local-exec" {
    when        = destroy
    interpreter = [self.output.agent.python, "-I", "-S", self.output.agent.archive, "revoke"]
    command     = self.output.agent.grant
    quiet       = true
  }
}
