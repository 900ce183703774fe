output "endpoint" {
  description = "Where the agent of the server reports."
  value       = { node_dir = terraform_data.server.output.agent.node_dir }
}
